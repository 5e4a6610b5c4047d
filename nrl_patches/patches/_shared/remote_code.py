"""A tiny model whose code lies beside its configuration, in a cache such as the hub's."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

MODULE = "configuration_tiny"

FILES = {
    f"{MODULE}.py": (
        "from transformers import PretrainedConfig\nfrom .sizes import WIDTH\n\n\n"
        "class TinyConfig(PretrainedConfig):\n"
        '    model_type = "nrl_tiny"\n\n'
        "    def __init__(self, width=WIDTH, **kwargs):\n"
        "        self.width = width\n"
        "        super().__init__(**kwargs)\n"
    ),
    "sizes.py": "from .numbers_of import TWO\n\nWIDTH = TWO**3\n",
    "numbers_of.py": "TWO = 2\n",
    "config.json": json.dumps({"model_type": "nrl_tiny", "auto_map": {"AutoConfig": f"{MODULE}.TinyConfig"}}),
}
"""Two modules deep, so that what an imported module imports is looked for too."""


def snapshot(cache: Path) -> Path:
    """Write the model into a cache of the hub's form.

    Args:
        cache: The folder of the cache, which is made.

    Returns:
        The folder of the snapshot, which holds symbolic links only.
    """
    repository = cache / "models--nrl--tiny"
    revision = repository / "snapshots" / "0123456789"
    for folder in (repository / "blobs", revision):
        folder.mkdir(parents=True)
    for number, (name, text) in enumerate(FILES.items()):
        blob = repository / "blobs" / f"{number:040x}"
        blob.write_text(text, encoding="utf-8")
        (revision / name).symlink_to(Path("..", "..", "blobs", blob.name))
    return revision


@contextmanager
def modules_in(folder: Path) -> Iterator[None]:
    """Have transformers copy modules to a folder, and not into the user's cache, inside a ``with`` block.

    Args:
        folder: The folder.
    """
    from transformers import dynamic_module_utils

    def loaded() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.startswith("transformers_modules")}

    path, own = list(sys.path), loaded()
    with mock.patch.object(dynamic_module_utils, "HF_MODULES_CACHE", str(folder)):
        try:
            for name in own:
                del sys.modules[name]
            importlib.invalidate_caches()
            yield
        finally:
            for name in loaded():
                del sys.modules[name]
            sys.modules.update(own)
            sys.path[:] = path
