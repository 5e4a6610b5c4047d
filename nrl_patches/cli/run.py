"""``nrl-patches run``: runs a command with the patches applied in it and in its children, without changing its code."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import click

from nrl_patches.bootstrap import activation
from nrl_patches.processes.autowrapt import beginning_of, covering, interpreter_of, missing_in

__all__ = ["run"]

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # As env(1) and the shells define them.


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def run(command: tuple[str, ...]) -> None:
    """Replace this process by COMMAND, with the patches applied in it and in every process that it starts.

    Needs autowrapt in the environment of COMMAND: pip install "nrl-patches[run]".
    """
    program = shutil.which(command[0])
    if program is None and Path(command[0]).name != command[0] and Path(command[0]).exists():
        raise _CannotRunError(f"{command[0]}: expected a program; found a file that is not executable", _NOT_EXECUTABLE)
    if program is None:
        raise _CannotRunError(
            f"{command[0]}: expected a command; found none with that name; next step: check PATH", _NOT_FOUND
        )
    # With the patches off, nothing is missing: the job must start for a user who bisects a failure.
    interpreter = interpreter_of(program) if activation().settings.enabled else None
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
        if error.errno == errno.ENOEXEC and b"\0" not in beginning_of(program):
            os.execv("/bin/sh", ["sh", program, *command[1:]])  # noqa: S606 - without a first line, as execvp(3) has it
        raise _CannotRunError(f"{program}: expected a program; found {error}", _NOT_EXECUTABLE) from error


class _CannotRunError(click.ClickException):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance
