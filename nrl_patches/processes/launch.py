"""Start interpreters that execute nothing of the current directory and never outlive this process.

Used by the command, the tripwires and the matrix; never by ``import nrl_patches``.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

from nrl_patches.processes.lifeline import end_with_the_starter

__all__ = ["MODULE", "Ended", "describe_end", "ending_all", "run_code", "run_in_fork", "start_code", "tail"]

MODULE = "from runpy import run_module; import sys; run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
"""Code that runs a module, named by its first argument, as ``-m`` does."""

_TAIL = 100_000
_BOOTSTRAP = ("lifeline.py", "bootstrap.py")
_running: set[subprocess.Popen[bytes]] = set()
_ended = False
_lock = threading.Lock()


@dataclass(frozen=True)
class Ended:
    """How an interpreter ended.

    Attributes:
        code: Its exit code as ``subprocess`` has it; None if it took too long and was killed.
        output: The end of what it wrote to stdout; and to stderr, unless that was kept apart.
        errors: The end of what it wrote to stderr, if that was kept apart.
        seconds: How long it took.
    """

    code: int | None
    output: str
    errors: str
    seconds: float


def run_code(  # noqa: PLR0913 - as subprocess has them
    code: str,
    arguments: Sequence[str] = (),
    *,
    timeout: float,
    python: str = "",
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    apart: bool = False,
) -> Ended:
    """Execute code in an interpreter and wait for its end; kill it and what it has started if that takes too long.

    Args:
        code: What to execute.
        arguments: Its ``sys.argv[1:]``.
        timeout: Seconds that it may take.
        python: The interpreter; by default the present one, with the present copy of this package.
        environ: Its environment variables; by default those of this process.
        pass_fds: File descriptors that it inherits.
        apart: Whether stderr is kept apart from stdout.

    Returns:
        Its exit code and the last 100,000 bytes of its output, read as text.

    Raises:
        OSError: The interpreter cannot be started.
    """
    start = time.monotonic()
    # To files rather than pipes: a process that is left running may keep a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        streams = (output, errors if apart else output)
        with start_code(code, arguments, streams=streams, python=python, environ=environ, pass_fds=pass_fds) as process:
            try:
                ended: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                ended = None
        return Ended(ended, tail(output), tail(errors), time.monotonic() - start)


def run_in_fork(function: Callable[[], bytes], timeout: float) -> tuple[Ended, bytes]:
    """Call a function in a fork of this process and wait for its end; kill it and what it started if that takes long.

    Its output goes where that of this process goes.

    Args:
        function: What to call; it returns less than a pipe holds, 65,536 bytes.
        timeout: Seconds that it may take.

    Returns:
        How the fork ended, and what the function returned; nothing if it raised or was killed.
    """
    reading, writing = os.pipe()
    lifeline, held = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        os.setsid()
        end_with_the_starter(lifeline)
        code = 1
        try:
            os.write(writing, function())
            code = 0
        finally:
            os._exit(code)
    os.close(lifeline)
    os.close(writing)
    # Waiting for the end of the process, not of the pipe: what it started and left behind may hold that open.
    process = os.pidfd_open(pid)
    ended, _, _ = select.select([process], [], [], timeout)
    os.close(process)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(held)
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb", buffering=0) as answer:
        told = (answer.read() or b"") if ended else b""
    seconds = time.monotonic() - start
    return Ended(os.waitstatus_to_exitcode(status) if ended else None, "", "", seconds), told


@contextmanager
def start_code(  # noqa: PLR0913 - as subprocess has them
    code: str,
    arguments: Sequence[str],
    *,
    streams: tuple[IO[bytes], IO[bytes]],
    python: str = "",
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Execute code in an interpreter, and kill it and what it has started when the context is left.

    The kernel does so when this process ends without leaving it, by a signal too.

    Args:
        code: What to execute.
        arguments: Its ``sys.argv[1:]``.
        streams: Its stdout and stderr.
        python: The interpreter; by default the present one, with the present copy of this package.
        environ: Its environment variables; by default those of this process.
        pass_fds: File descriptors that it inherits.
        cwd: Its working directory.

    Yields:
        The process, the leader of a session of its own; its stdin is ``/dev/null``.

    Raises:
        OSError: The interpreter cannot be started.
        InterruptedError: Another thread has ended everything, see :func:`ending_all`.
    """
    reading, writing = os.pipe()
    home = "" if python else str(Path(__file__).parents[2])
    files = resources.files(__package__)
    bootstrap = "\n".join(files.joinpath(name).read_text(encoding="utf-8") for name in _BOOTSTRAP)
    variables = dict(os.environ if environ is None else environ)
    if not variables.get("PYTHONSAFEPATH"):
        variables["PYTHONSAFEPATH"] = "nrl_patches"  # bootstrap.py removes it again.
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(  # noqa: S603 - interpreters that the user has named, and our own code
            [python or sys.executable, "-c", bootstrap, str(reading), home, code, *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=streams[0],
            stderr=streams[1],
            pass_fds=(reading, *pass_fds),
            cwd=cwd,
            start_new_session=True,  # So that what it has started dies with it.
        )
        os.close(reading)
        reading = -1
        with _lock:
            _running.add(process)
            if _ended:
                raise InterruptedError("the run was interrupted")
        yield process
    finally:
        if process is not None:
            _kill(process)
            process.wait()
            with _lock:
                _running.discard(process)
        for end in (reading, writing):
            if end >= 0:
                os.close(end)


@contextmanager
def ending_all() -> Iterator[Callable[[], None]]:
    """Yield a function with which one thread kills what all threads have started; nothing more starts afterwards.

    For a pool of threads inside this context: an interrupted caller waits for them.
    """
    global _ended  # noqa: PLW0603 - of this process, like what it has started

    def end() -> None:
        global _ended  # noqa: PLW0603
        with _lock:
            _ended = True
            for process in _running:
                _kill(process)

    try:
        yield end
    finally:
        _ended = False


def describe_end(code: int) -> str:
    """Return how a process without an answer ended, as a phrase.

    Args:
        code: Its exit code as ``subprocess`` has it: negative for a signal.
    """
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with {code} without an answer"


def tail(file: IO[bytes], length: int = _TAIL) -> str:
    """Return the end of a file of any size, as text; bytes that are not UTF-8 are replaced.

    Args:
        file: The file, open for reading.
        length: The number of bytes.
    """
    file.seek(max(0, file.seek(0, os.SEEK_END) - length))
    return file.read(length).decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
