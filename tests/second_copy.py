"""Two copies of this package in one process, both activated; see ``test_package.py``.

A vendored one, or another version earlier on sys.path.
"""

import importlib
import os
import sys

target, patches, copy = (os.environ[name] for name in ("TARGET", "PATCHES", "COPY"))
if os.environ["IMPORTED_BEFORE"] == "True":
    importlib.import_module(f"{target}.core")


def activated():
    """Activate the patches by whichever copy is imported now."""
    package = importlib.import_module("nrl_patches")
    registry = importlib.import_module("nrl_patches.engine.registry").load(importlib.import_module(patches))
    activation = importlib.import_module("nrl_patches.engine.activation").Activation(registry, {})
    activation.start()
    return package, activation


_, first = activated()
finders = sys.meta_path
for name in [n for n in sys.modules if n.split(".")[0] in {"nrl_patches", patches}]:
    del sys.modules[name]
sys.path.insert(0, copy)
other, second = activated()
assert other.__file__.startswith(copy)
core = importlib.import_module(f"{target}.core")
assert core.count() == 2, core.count()
assert sys.meta_path is finders  # Both keep their finders first in one list.
(one,), (two,) = first.status().values(), second.status().values()
assert one.state == two.state == "applied", (one, two)
(note,) = one.notes + two.notes
assert note.startswith("applied by the copy of nrl_patches in "), note
follower, leader = (second, first) if two.notes else (first, second)
refused = None
try:
    follower.undo(one.id)
except Exception as error:  # noqa: BLE001 - of either copy's class
    refused = str(error)
assert "undo it through that copy" in str(refused), refused
leader.undo()
assert core.count() == 1
