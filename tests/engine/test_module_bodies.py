"""Rewriting the statements of a module as it is executed."""

import importlib
import inspect
import py_compile
import sys

import pytest
from engine.test_rewriting import patch_file
from standins import only

from nrl_patches import PatchError

CORE = """
from os.path import not_there

def count():
    return 1
"""

OLD = "from os.path import not_there"

NEW = """
try:
    from os.path import not_there
except ImportError:
    not_there = None
"""


@pytest.fixture
def core(sandbox):
    sandbox.distribution(core=CORE)
    patch_file(sandbox, f"{sandbox.name}.core", OLD, NEW)
    return f"{sandbox.name}.core"


def test_a_module_that_cannot_be_imported_can_be(sandbox, core):
    with pytest.raises(ImportError):
        importlib.import_module(core)
    activation = sandbox.activate()
    module = importlib.import_module(core)
    assert module.not_there is None
    assert only(activation).state == "applied"
    assert module.count() == 1
    assert inspect.getsource(module.count) == "def count():\n    return 1\n"
    assert module.__file__ == str(sandbox.folder / sandbox.name / "core.py")
    assert OLD in (sandbox.folder / sandbox.name / "core.py").read_text(encoding="utf-8")


def test_it_is_executed_as_it_is_where_no_patch_is_needed(sandbox):
    sandbox.distribution("2.0", core=CORE.replace("not_there", "join"))
    patch_file(sandbox, f"{sandbox.name}.core", OLD, NEW)
    activation = sandbox.activate()
    sandbox.core()
    assert only(activation).state == "not-affected"


def test_edits_that_do_not_match_are_told_before_the_import_fails(sandbox, caplog):
    sandbox.distribution(core=CORE.replace("os.path", "os"))
    patch_file(sandbox, f"{sandbox.name}.core", OLD, NEW)
    activation = sandbox.activate()
    with pytest.raises(ImportError):
        sandbox.core()
    assert only(activation).state == "drifted"
    assert "+from os import not_there" in caplog.text


def test_under_strict_mode_they_raise_in_place_of_the_import_error(sandbox):
    sandbox.distribution(core=CORE.replace("os.path", "os"))
    patch_file(sandbox, f"{sandbox.name}.core", OLD, NEW)
    sandbox.activate(NRL_PATCHES_STRICT="1")
    with pytest.raises(PatchError, match="exactly once"):
        sandbox.core()


def test_a_module_that_was_imported_before_is_drift(sandbox):
    sandbox.distribution(core=CORE.replace("not_there", "join"))
    patch_file(sandbox, f"{sandbox.name}.core", OLD.replace("not_there", "join"), "join = None")
    sandbox.core()
    activation = sandbox.activate()
    assert only(activation).state == "drifted"
    assert "imported before this package was" in only(activation).reason


ONLY_FOR_IMPORT = "only_for_import=True,"


@pytest.mark.parametrize("there", [OLD.replace("not_there", "join"), NEW], ids=["upstream's", "rewritten on disk"])
def test_a_module_that_was_imported_before_needs_no_help_with_its_import(sandbox, caplog, there):
    sandbox.distribution(core=CORE.replace(OLD, there))
    patch_file(sandbox, f"{sandbox.name}.core", OLD, NEW, last=ONLY_FOR_IMPORT)
    sandbox.core()
    activation = sandbox.activate(NRL_PATCHES_STRICT="1")
    assert only(activation).state == "not-affected"
    assert "it was imported without the patch" in only(activation).reason
    assert not caplog.text


def test_its_import_is_helped_and_what_does_not_match_is_told(sandbox, core, caplog):
    patch_file(sandbox, core, OLD, NEW, last=ONLY_FOR_IMPORT)
    activation = sandbox.activate()
    assert importlib.import_module(core).not_there is None
    assert only(activation).state == "applied"
    activation.undo()
    del sys.modules[core]
    sandbox.distribution(core=CORE.replace("os.path", "os"))
    with pytest.raises(ImportError):
        sandbox.activate() and importlib.import_module(core)
    assert "+from os import not_there" in caplog.text


def test_edits_that_do_not_match_stay_drift_when_the_import_goes_well(sandbox, caplog):
    sandbox.distribution(core=CORE.replace(OLD, "not_there = None"))
    patch_file(sandbox, f"{sandbox.name}.core", OLD, NEW, last=ONLY_FOR_IMPORT)
    activation = sandbox.activate()
    sandbox.core()
    assert only(activation).state == "drifted"
    assert "exactly once" in caplog.text


def test_undo_says_that_what_was_executed_stays_and_holds_for_the_next_execution(sandbox):
    sandbox.distribution(core=CORE.replace("not_there", "join"))
    patch_file(sandbox, f"{sandbox.name}.core", OLD.replace("not_there", "join"), "join = None")
    activation = sandbox.activate()
    module = sandbox.core()
    assert module.join is None
    activation.undo()
    assert "cannot be undone" in only(activation).notes[0]
    assert module.join is None
    importlib.reload(module)
    assert module.join is not None
    activation.apply()
    assert only(activation).state == "drifted"
    importlib.reload(module)
    assert module.join is None
    assert only(activation).state == "applied"


def test_executed_past_the_hook_it_is_drift(sandbox, core):
    activation = sandbox.activate()
    module = importlib.import_module(core)
    spec = importlib.util.spec_from_file_location(core, module.__file__)
    again = importlib.util.module_from_spec(spec)
    sys.modules[core] = again
    with pytest.raises(ImportError):
        spec.loader.exec_module(again)
    assert only(activation).state == "drifted"


def test_a_lazy_module_is_rewritten_when_it_is_executed(sandbox, core):
    activation = sandbox.activate()
    spec = importlib.util.find_spec(core)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[core] = module
    spec.loader.exec_module(module)
    assert module.not_there is None
    assert only(activation).state == "applied"


def test_a_fix_of_a_function_in_it_applies_as_well(sandbox, core):
    sandbox.patch("b_count", target=f"{core}:count")
    activation = sandbox.activate()
    assert importlib.import_module(core).count() == 2
    assert {str(status.state) for status in activation.status().values()} == {"applied"}


def test_without_source_it_is_drift_and_told_before_the_import_fails(sandbox, core, caplog):
    file = sandbox.folder / sandbox.name / "core.py"
    py_compile.compile(str(file), cfile=str(file.with_suffix(".pyc")))
    file.unlink()
    importlib.invalidate_caches()
    activation = sandbox.activate()
    with pytest.raises(ImportError, match="not_there"):
        importlib.import_module(core)
    assert only(activation).state == "drifted"
    assert "only bytecode is installed" in caplog.text
