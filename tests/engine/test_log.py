"""What must reach the user, whatever the host has made of logging."""

import contextlib
import io
import logging

import pytest
from package_copy import Copy

from nrl_patches.engine.log import tell

MESSAGE = "drifted: some.patch: expected this; found that; next step: do so"


@pytest.fixture
def loggers():
    """The logger of this package and the root logger, as in a program that has not set up anything."""
    ours, root = logging.getLogger("nrl_patches"), logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    yield ours, root
    root.setLevel(level)
    ours.setLevel(logging.NOTSET)
    ours.handlers.clear()
    ours.disabled, ours.propagate = False, True
    logging.disable(logging.NOTSET)


def nothing(_ours, _root):
    pass


def a_handler(_ours, root):
    root.addHandler(logging.StreamHandler())


def a_handler_of_our_own(ours, _root):
    ours.addHandler(logging.StreamHandler())
    ours.propagate = False


def disabled(ours, root):
    root.addHandler(logging.StreamHandler())
    ours.disabled = True  # as dictConfig does


def a_level_of_the_root(_ours, root):
    root.addHandler(logging.StreamHandler())
    root.setLevel(logging.ERROR)


def a_null_handler(_ours, root):
    root.addHandler(logging.NullHandler())


def a_handler_for_worse(_ours, root):
    root.addHandler(logging.StreamHandler())
    root.handlers[0].setLevel(logging.ERROR)


def logging_switched_off(_ours, root):
    root.addHandler(logging.StreamHandler())
    logging.disable(logging.CRITICAL)


def handlers_that_are_not_asked(ours, root):
    root.addHandler(logging.StreamHandler())
    ours.propagate = False
    ours.addHandler(logging.NullHandler())


@pytest.mark.parametrize(
    "set_up",
    [
        nothing,
        a_handler,
        a_handler_of_our_own,
        disabled,
        a_level_of_the_root,
        a_null_handler,
        a_handler_for_worse,
        logging_switched_off,
        handlers_that_are_not_asked,
    ],
)
def test_a_warning_is_read_once(loggers, monkeypatch, set_up):
    monkeypatch.setattr(loggers[1], "handlers", [])  # pytest's own
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        set_up(*loggers)
        tell(logging.WARNING, MESSAGE)
        tell(logging.INFO, "applied some.patch")
    assert stderr.getvalue().count(MESSAGE) == 1
    assert "applied" not in stderr.getvalue()


def test_who_raises_the_level_of_our_own_logger_means_it(loggers, capsys):
    ours, _ = loggers
    ours.setLevel(logging.ERROR)
    tell(logging.WARNING, MESSAGE)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stderr", [None, "closed"])
def test_without_a_place_to_write_to_it_neither_raises_nor_writes_elsewhere(loggers, capsys, stderr):
    ours, _ = loggers
    ours.disabled = True
    closed = io.StringIO()
    closed.close()
    with contextlib.redirect_stderr(closed if stderr else None):
        tell(logging.WARNING, MESSAGE)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    tell(logging.WARNING, MESSAGE)
    assert capsys.readouterr().err == f"nrl_patches: {MESSAGE}\n"


JOB = """
import logging, logging.config, multiprocessing, os, sys

def work():
    import standin.core

if __name__ == "__main__":
    import nrl_patches
    logging.config.dictConfig({"version": 1})
    import standin.core
    os.environ["NRL_PATCHES_STRICT"] = "maybe"
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
"""


def test_drift_in_a_program_that_has_set_up_logging_meanwhile(tmp_path):
    copy = Copy(tmp_path)
    copy.upstream()
    copy.patch(guard="lambda original: 'counts from zero'")
    done = copy.python(copy.write("job.py", JOB), PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition("drifted: ")[2].partition(":")[0] for line in lines if "drifted" in line] == [
        "standin.count",
        "standin.count",
    ]
    assert len([line for line in lines if "NRL_PATCHES_STRICT: expected 1 or 0" in line]) == 1


QUIET = "import logging; logging.getLogger('nrl_patches').disabled = True\n"

STARTUP = """
import nrl_patches_hosts.vllm
nrl_patches_hosts.vllm.plugin()
"""

CHILD = """
import sys
from nrl_patches.processes.spawn import child_bootstrap
text = child_bootstrap()
for name in [name for name in sys.modules if name.partition(".")[0] == "nrl_patches"]:
    del sys.modules[name]
open("nrl_patches/__init__.py", "w").write("1/0")
names = {"path": sys.path, "environ": {}, "version": "1", "disabled": {}, "strict": False}
exec(text, names | {"expected": "", "next_step": ""})
"""


@pytest.mark.parametrize("way", ["startup", "child"])
def test_that_the_package_cannot_be_imported(tmp_path, way):
    copy = Copy(tmp_path)
    if way == "startup":
        copy.write("nrl_patches/__init__.py", "1/0")
    done = copy.python("-c", QUIET + (STARTUP if way == "startup" else CHILD))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ZeroDivisionError") == 1
    assert "next step: " in done.stderr
