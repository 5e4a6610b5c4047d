"""The processes whose forks run scripts on upstream releases, see ``fork_server.py``."""

import functools
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import canonicalize_name

SCRIPT = Path(__file__).with_name("fork_server.py")

MODULES = (
    "torch",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.checkpoint",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.fsdp",
    "torch.profiler",
)
"""What is imported once for all scripts; the releases that are tested import most of it."""

LONGEST = 2**17
"""Bytes of an answer."""


def read_once(environ):
    """Return the variables that the interpreter and torch read when they start, and so in the server."""
    return {k: v for k, v in environ.items() if k.startswith(("OMP_", "PYTHON", "TORCH")) and k != "PYTHONPATH"}


class Server:
    """One such process.

    Attributes:
        imported: The versions of the distributions that it has imported, by canonical name.
    """

    def __init__(self, path, environ, modules=MODULES):
        """Start it and wait until it can fork.

        Args:
            path: The folders in front of its site-packages.
            environ: Its other environment variables.
            modules: What it imports.
        """
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._read_once = read_once(environ)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, SCRIPT, str(theirs.fileno()), *modules],
                env={**environ, "PYTHONPATH": os.pathsep.join(path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # An interrupt from the keyboard is for the test run, which then ends it.
            )
        answer = self._connection.recv(LONGEST)
        assert answer, "the server ended before it was asked for anything"
        self.imported = {canonicalize_name(name): version for name, version in json.loads(answer).items()}

    def run(self, arguments, environ, timeout):
        """Run a script in a fork; return the finished process as ``subprocess.run`` does.

        Args:
            arguments: Its path and its arguments.
            environ: Its environment variables, with a PYTHONPATH.
            timeout: Seconds after which it is killed.

        Raises:
            subprocess.TimeoutExpired: It was killed.
        """
        other = read_once(environ).items() ^ self._read_once.items()
        assert not other, f"variables that take a fresh interpreter: {sorted(other)}"
        request = {"arguments": arguments, "environ": environ, "folder": str(Path.cwd()), "timeout": timeout}
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8") as output,
            tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        ):
            streams = [output.fileno(), errors.fileno()]
            socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
            answer = self._connection.recv(LONGEST)
            output.seek(0)
            errors.seek(0)
            told = output.read(), errors.read()
        assert answer, f"the server ended while {arguments} ran: {told}"
        code = json.loads(answer)
        if code is None:
            raise subprocess.TimeoutExpired(arguments, timeout, *told)
        return subprocess.CompletedProcess(arguments, code, *told)

    def close(self):
        """End it, and whatever still runs there."""
        self._connection.close()
        self._process.wait()


_SERVERS = {}
"""By the folders in front of their site-packages."""


def run(arguments, environ, timeout):
    """Run a script in a fork of a process that has imported what a fresh one would import; see :meth:`Server.run`."""
    plain = _server((), environ)
    path = environ["PYTHONPATH"].split(os.pathsep)
    # As a rule none has: what torch depends on is in the same version everywhere.
    other = tuple(folder for folder in path if any(plain.imported.get(n, v) != v for n, v in _versions(folder).items()))
    return _server(other, environ).run(arguments, environ, timeout)


def close():
    """End all that were started."""
    while _SERVERS:
        _SERVERS.popitem()[1].close()


def _server(path, environ):
    if path not in _SERVERS:
        _SERVERS[path] = Server(path, environ)
    return _SERVERS[path]


@functools.cache
def _versions(folder):
    return {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions(path=[folder])}
