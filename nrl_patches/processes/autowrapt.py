"""How ``nrl-patches run`` puts the patches into programs whose code cannot be changed: autowrapt's startup files.

autowrapt leaves a startup file in ``site-packages`` that every interpreter executes; where ``AUTOWRAPT_BOOTSTRAP``
names a group of entry points, it registers them as post-import hooks. Ours stand for the packages that have targets, so
an interpreter that imports none of these never imports nrl_patches; ``hosts/startup/sitecustomize.py`` spares it the
rest.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from nrl_patches.processes.launch import run_code

__all__ = ["GROUP", "NOT_EXECUTED", "VARIABLE", "beginning_of", "covering", "interpreter_of", "missing_in"]

GROUP = "nrl_patches.startup"
VARIABLE = "AUTOWRAPT_BOOTSTRAP"
STARTUP = Path(__file__).parents[1] / "hosts" / "startup"  # See the file in it.
NOT_EXECUTED = "but its startup file is not executed: autowrapt is on the path, but not installed in site-packages"
_TIMEOUT = 300

_CHECK = f"""
import importlib.metadata, importlib.util, sys
missing = [name for name in ("autowrapt", "nrl_patches") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("no " + ", ".join(missing))
if not importlib.metadata.entry_points(group={GROUP!r}):
    sys.exit("no entry points of nrl_patches: it is on the path, but not installed")
if "autowrapt.bootstrap" not in sys.modules:
    sys.exit("autowrapt, {NOT_EXECUTED}")
"""


def covering(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that put the patches into a program and into what it starts.

    Args:
        environ: The environment variables that the program would have; what they set of these is kept.
    """
    groups = [group.strip() for group in environ.get(VARIABLE, "").split(",") if group.strip()]
    path = environ.get("PYTHONPATH", "")
    if str(STARTUP) not in path.split(os.pathsep):
        path = f"{STARTUP}{os.pathsep}{path}" if path else str(STARTUP)
    return {VARIABLE: ",".join(dict.fromkeys((*groups, GROUP))), "PYTHONPATH": path}


def interpreter_of(program: str) -> str | None:
    """Return the Python interpreter that a program is, or whose script it is; None for other programs.

    Args:
        program: The path of the program.
    """
    if _is_python(program):
        return program
    beginning = beginning_of(program)
    first = beginning[2:].partition(b"\n")[0] if beginning.startswith(b"#!") else b""
    words = first.decode(errors="replace").split()
    if words and Path(words[0]).name == "env":
        words = [shutil.which(word) or "" for word in words[1:] if not word.startswith("-")]
    return words[0] if words and _is_python(words[0]) else None


def missing_in(interpreter: str) -> str:
    """Return what an interpreter lacks for ``nrl-patches run``, as a phrase; empty if nothing is missing.

    Args:
        interpreter: The path of the interpreter; it is started, and killed after five minutes.

    Raises:
        OSError: It cannot be started.
    """
    # With the environment of the command: without its variable, autowrapt's startup file has no visible effect.
    environ = os.environ | covering(os.environ)
    done = run_code(_CHECK, timeout=_TIMEOUT, python=interpreter, environ=environ, apart=True)
    if done.code is None:
        return f"no answer within {_TIMEOUT} s"
    return (done.errors.strip().splitlines() or ["no answer"])[-1] if done.code else ""


def beginning_of(program: str) -> bytes:
    """Return the first 4096 bytes of a file; a null byte if it cannot be read.

    Args:
        program: The path of the file.
    """
    try:
        with Path(program).open("rb") as file:
            return file.read(4096)
    except OSError:  # What may be executed need not be readable.
        return b"\0"


def _is_python(program: str) -> bool:
    # Programs with similar names, such as a user's own python-train.sh, must not be executed.
    return re.fullmatch(r"python[\d.]*t?", Path(program).name) is not None
