"""``nrl-patches run``: a command whose code cannot be changed, with the patches in it and in its children.

autowrapt leaves a startup file in ``site-packages`` that every interpreter executes; where ``AUTOWRAPT_BOOTSTRAP``
names a group of entry points, it registers them as post-import hooks. Ours stand for the packages that have targets, so
an interpreter that imports none of these never imports nrl_patches; ``startup/sitecustomize.py`` spares it the rest.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from nrl_patches.activation import default_activation
from nrl_patches.launch import run_code

__all__ = ["GROUP", "NOT_EXECUTED", "VARIABLE", "covering", "run"]

GROUP = "nrl_patches.startup"
VARIABLE = "AUTOWRAPT_BOOTSTRAP"
STARTUP = Path(__file__).parent / "startup"  # See the file in it.
NOT_EXECUTED = "but its startup file is not executed: autowrapt is on the path, but not installed in site-packages"
_TIMEOUT = 300
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # As env(1) and the shells have it.

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


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def run(command: tuple[str, ...]) -> None:
    """Replace this process by COMMAND, which gets the patches, and so do all the processes that it starts.

    Needs autowrapt in the environment of COMMAND: pip install "nrl-patches[run]".
    """
    program = shutil.which(command[0])
    if program is None and Path(command[0]).name != command[0] and Path(command[0]).exists():
        raise _CannotRunError(f"{command[0]}: expected a program; found none that may be executed", _NOT_EXECUTABLE)
    if program is None:
        raise _CannotRunError(
            f"{command[0]}: expected a command; found none of that name; next step: check PATH", _NOT_FOUND
        )
    # Off, there is nothing to be missed: whoever looks for the culprit of a failing job must be able to start it.
    interpreter = interpreter_of(program) if default_activation().settings.enabled else None
    try:
        missing = missing_in(interpreter) if interpreter else ""
    except OSError as error:
        raise _CannotRunError(f"{program}: expected an interpreter; found {error}", _NOT_EXECUTABLE) from error
    if missing:
        raise _CannotRunError(
            f"{interpreter}: expected nrl_patches and autowrapt; found {missing}; "
            # -I, because to pip what is found on PYTHONPATH is installed already.
            f'next step: {interpreter} -I -m pip install "nrl-patches[run]"',
            1,
        )
    os.environ.update(covering(os.environ))
    sys.stdout.flush()
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # By Python, for itself; what is ignored stays so across execv.
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execv(program, command)  # noqa: S606 - that is what the user asked for
    except OSError as error:
        if error.errno == errno.ENOEXEC and b"\0" not in _beginning_of(program):
            os.execv("/bin/sh", ["sh", program, *command[1:]])  # noqa: S606 - without a first line, as execvp(3) has it
        raise _CannotRunError(f"{program}: expected a program; found {error}", _NOT_EXECUTABLE) from error


def covering(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that put the patches into a program and what it starts, what is set already included."""
    groups = [group.strip() for group in environ.get(VARIABLE, "").split(",") if group.strip()]
    path = environ.get("PYTHONPATH", "")
    if str(STARTUP) not in path.split(os.pathsep):
        path = f"{STARTUP}{os.pathsep}{path}" if path else str(STARTUP)
    return {VARIABLE: ",".join(dict.fromkeys((*groups, GROUP))), "PYTHONPATH": path}


def interpreter_of(program: str) -> str | None:
    """Return the Python interpreter that a program is, or whose script it is; None for other programs."""
    if _is_python(program):
        return program
    beginning = _beginning_of(program)
    first = beginning[2:].partition(b"\n")[0] if beginning.startswith(b"#!") else b""
    words = first.decode(errors="replace").split()
    if words and Path(words[0]).name == "env":
        words = [shutil.which(word) or "" for word in words[1:] if not word.startswith("-")]
    return words[0] if words and _is_python(words[0]) else None


def missing_in(interpreter: str) -> str:
    """Return what was found in place of all that startup files of ours need to work; empty if nothing is missing."""
    # Asked as the command will be started: autowrapt's startup file does nothing that shows without its variable.
    environ = os.environ | covering(os.environ)
    done = run_code(_CHECK, timeout=_TIMEOUT, python=interpreter, environ=environ, apart=True)
    if done.code is None:
        return f"no answer to the question within {_TIMEOUT} s"
    return (done.errors.strip().splitlines() or ["no answer to the question"])[-1] if done.code else ""


def _beginning_of(program: str) -> bytes:
    try:
        with Path(program).open("rb") as file:
            return file.read(4096)
    except OSError:  # What may be executed need not be readable.
        return b"\0"


def _is_python(program: str) -> bool:
    # Others of the kind, as a user's own python-train.sh, would be executed by the question.
    return re.fullmatch(r"python[\d.]*t?", Path(program).name) is not None


class _CannotRunError(click.ClickException):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance
