"""How the patches reach the processes that this one starts through ``multiprocessing``.

A forked child has everything already. A spawned one, or one of the fork server, begins with an interpreter that knows
nothing of its parent, and learns what it needs from ``multiprocessing.spawn.get_preparation_data``: a dict that the
parent pickles and the child unpickles before it imports the main module. multiprocessing offers no hook at that moment
(``set_forkserver_preload`` reaches neither spawned children nor a server that runs already), so one more entry is put
into that dict, and its unpickling imports nrl_patches. coverage.py reaches its children the same way.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from nrl_patches.errors import FailedError, explain_problem
from nrl_patches.hooks import call_when_executed
from nrl_patches.modules import process_module
from nrl_patches.telling import tell

__all__ = ["activation_path", "cover_children", "parent_version"]

_KEY = "nrl_patches"
_MARK = "_nrl_patches_original"

_ARRIVAL = """
import os, sys, types
sys.path = list(path)
for name, value in environ.items():
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
shared = vars(sys.modules.setdefault("_nrl_patches_process", types.ModuleType("_nrl_patches_process")))
shared.setdefault("path", "multiprocessing")
shared.setdefault("parent version", version)
try:
    import nrl_patches
    if hasattr(nrl_patches._activation, "leave_out"):
        nrl_patches._activation.leave_out(disabled)
except Exception as error:
    if strict:
        raise
    import logging
    logger = logging.getLogger("nrl_patches")
    told = (os.getpid(), sys.executable, type(error).__name__, error)
    logger.error(missing, *told)
    if not logger.isEnabledFor(logging.ERROR) and sys.stderr is not None:  # Set up so that nobody would read it.
        print("nrl_patches: " + missing % told, file=sys.stderr, flush=True)
    try:
        from nrl_patches_startup import keep_failure
        keep_failure("multiprocessing", error)
    except Exception:
        pass
"""
"""What a child executes, as text: nothing of this package may be needed to say that this package is missing there.

The path is the one that ``multiprocessing.spawn.prepare`` gives the child a moment later. The environment is set anew
because a fork server hands down the one that it was started with, and what is undone in the parent is undone here even
if that server has imported the package itself. The version found here may be another, and so may what is installed
beside it: a failure is left for ``nrl-patches status --pid`` only where that is possible.
"""

_MISSING = explain_problem(
    "multiprocessing child %d",
    expected="nrl_patches as in its parent process",
    found="%s, where importing it raised %s: %s",
    next_step="install nrl-patches for that interpreter; the child runs without any patch",
)


class _Luggage:
    """Activates the patches wherever it is unpickled.

    Args:
        names: The names that the text above uses, with what they stand for.
    """

    def __init__(self, **names: Any) -> None:
        self.names = names

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, dict[str, Any]]]:
        """Pickle as a call of ``exec``, which every interpreter has."""
        from multiprocessing.context import get_spawning_popen  # noqa: PLC0415 - whoever pickles has imported it

        # Only a fork server hands down a stale environment. A launcher of the child may have set its own on purpose.
        stale = getattr(get_spawning_popen(), "method", None) == "forkserver"
        return exec, (_ARRIVAL, self.names if stale else {**self.names, "environ": {}})


def activation_path() -> str:
    """Return the word for what brought nrl_patches into this process first; see ``nrl_patches_startup``."""
    path: str = vars(process_module()).setdefault("path", "import")
    return path


def parent_version() -> str | None:
    """Return the version of nrl_patches in the parent of a multiprocessing child, None in other processes."""
    return vars(process_module()).get("parent version")


def cover_children(
    version: str, disabled: Callable[[], Mapping[str, str]], variables: tuple[str, ...], *, strict: bool
) -> None:
    """Let every child that ``multiprocessing`` spawns from now on begin with ``import nrl_patches``. Acts once.

    Args:
        version: That of nrl_patches here.
        disabled: Asked at each start of a child for the patches that are off here, with the reasons.
        variables: The environment variables that a fork server's child must have as this process has them.
        strict: Whether a child that cannot import nrl_patches fails.
    """

    def replace(spawn: ModuleType) -> None:
        original = getattr(spawn, "get_preparation_data", None)
        if original is None:
            problem = explain_problem(
                "multiprocessing.spawn",
                expected="get_preparation_data",
                found="no such function in this version of Python",
                next_step="import nrl_patches in the children yourself, or use `nrl-patches run`",
            )
            if strict:
                raise FailedError(problem)
            tell(logging.WARNING, problem)
            return
        if hasattr(original, _MARK):
            return

        @functools.wraps(original)
        def get_preparation_data(name: str) -> dict[str, Any]:
            data: dict[str, Any] = original(name)
            data[_KEY] = _Luggage(
                path=data.get("sys_path", sys.path),
                environ={variable: os.environ.get(variable) for variable in variables},
                version=version,
                disabled=dict(disabled()),
                strict=strict,
                missing=_MISSING,
            )
            return data

        setattr(get_preparation_data, _MARK, original)
        spawn.get_preparation_data = get_preparation_data  # type: ignore[attr-defined]

    if not _hooks:
        _hooks.append(replace)
        call_when_executed("multiprocessing.spawn", replace)


_hooks: list[Callable[[ModuleType], None]] = []
