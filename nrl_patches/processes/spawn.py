"""Pass the patches on to the children that this process starts through ``multiprocessing``.

A forked child has everything already. A spawned one, or one of the fork server, begins with an interpreter that knows
nothing of its parent, and learns what it needs from ``multiprocessing.spawn.get_preparation_data``: a dict that the
parent pickles and the child unpickles before it imports the main module. multiprocessing offers no hook at that moment
(``set_forkserver_preload`` reaches neither spawned children nor a server that runs already), so one more entry is put
into that dict, and its unpickling imports nrl_patches. coverage.py reaches its children the same way.

:func:`nrl_patches.bootstrap.cover` replaces that function.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, NamedTuple

from nrl_patches.engine.log import tell
from nrl_patches.engine.module_state import process_module
from nrl_patches.errors import FailedError, Problem

__all__ = ["Carried", "activation_path", "carry", "pack", "parent_version", "report_unreachable"]

_KEY = "nrl_patches"
_CHILD_BOOTSTRAP = """
import os
sys.path = list(path)
for name, value in environ.items():
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
is_strict = lambda: strict
shared = vars(sys.modules.setdefault("_nrl_patches_process", type(sys)("_nrl_patches_process")))
shared.setdefault("parent version", version)
try:
    if load("multiprocessing", expected, next_step):
        package = sys.modules["nrl_patches"]
        if (disabled or package.__version__ != version) and hasattr(package._activation, "leave_out"):
            package._activation.leave_out(disabled)
except Exception as error:
    if strict:
        raise
    report("multiprocessing", error, expected, next_step)
"""
"""What a child executes after the text of ``hosts/door.py``: this package may be missing there.

The path is the one that ``multiprocessing.spawn.prepare`` gives the child a moment later. The environment is set again
because a fork server passes on the one that it was started with, and what is undone in the parent is undone here even
if that server has imported the package itself. The version found here may differ.
"""

_EXPECTED = "multiprocessing child {pid}: expected nrl_patches as in its parent process"
_NEXT_STEP = "install nrl-patches for {python}"


class Carried(NamedTuple):
    """What is the same for all children, or determined at the start of each.

    Attributes:
        version: That of nrl_patches here.
        disabled: Called at each start of a child; returns the patches that are off here, with the reasons.
        variables: The environment variables that a fork server's child must have as this process has them.
        strict: Whether a child that cannot import nrl_patches fails.
    """

    version: str
    disabled: Callable[[], Mapping[str, str]]
    variables: tuple[str, ...]
    strict: bool


_carried: list[Carried] = []


class _ActivationPayload:
    """Activates the patches wherever it is unpickled.

    Args:
        text: What is executed.
        names: The names that it uses, with what they stand for.
    """

    def __init__(self, text: str, **names: Any) -> None:
        self.text = text
        self.names = names

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        """Pickle as a call of ``exec``, which every interpreter has."""
        from multiprocessing.context import get_spawning_popen  # noqa: PLC0415 - imported already when a child is pickled

        # Only a fork server hands down a stale environment. A launcher of the child may have set its own on purpose.
        stale = getattr(get_spawning_popen(), "method", None) == "forkserver"
        return exec, (self.text, self.names if stale else {**self.names, "environ": {}})


def activation_path() -> str:
    """Return the word for how nrl_patches came into this process first; see ``hosts/door.py``."""
    path: str = vars(process_module()).setdefault("path", "import")
    return path


def parent_version() -> str | None:
    """Return the version of nrl_patches in the parent of a multiprocessing child, None in other processes."""
    return vars(process_module()).get("parent version")


def carry(carried: Carried) -> None:
    """Pass something on to all children from now on, in place of what was passed on before.

    Args:
        carried: What to pass on.
    """
    child_bootstrap()  # Read it now: the package may be replaced while a job runs.
    _carried[:] = [carried]


@functools.cache
def child_bootstrap() -> str:
    """Return the text that a child executes."""
    return resources.files("nrl_patches.hosts").joinpath("door.py").read_text(encoding="utf-8") + _CHILD_BOOTSTRAP


def pack(data: dict[str, Any]) -> None:
    """Add what a child needs to the data that it is prepared with; nothing if the patches are switched off.

    Args:
        data: What ``multiprocessing.spawn.get_preparation_data`` returned.
    """
    for carried in _carried:
        data[_KEY] = _ActivationPayload(
            child_bootstrap(),
            path=data.get("sys_path", sys.path),
            environ={variable: os.environ.get(variable) for variable in carried.variables},
            version=carried.version,
            disabled=dict(carried.disabled()),
            strict=carried.strict,
            expected=_EXPECTED,
            next_step=_NEXT_STEP,
        )


def report_unreachable() -> None:
    """Warn that children cannot be reached in this version of Python.

    Raises:
        FailedError: That, under strict mode.
    """
    problem = Problem(
        "multiprocessing.spawn",
        expected="get_preparation_data",
        found="no such function in this version of Python",
        next_step="import nrl_patches in the children yourself, or use `nrl-patches run`",
    )
    if any(carried.strict for carried in _carried):
        raise FailedError(problem)
    tell(logging.WARNING, problem)
