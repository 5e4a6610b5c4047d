"""Runs scripts in forks of this process, which has imported torch: what many of them would spend half their time on.

    python fork_server.py SOCKET MODULE...

SOCKET is the descriptor of a socket that keeps messages apart. When the modules are imported, this process sends the
versions of the distributions that they are from, a JSON object. A request is a JSON object with ``arguments`` (the
script and its own), ``environ``, ``folder`` and ``timeout``; with it come descriptors for the output and the errors.
The answer is the exit code of the fork, or null if that was killed after so many seconds. When the socket is closed,
everything ends.

Neither this package nor any release that is tested is imported here, and nothing is computed: the threads of torch
would not survive a fork.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
import types
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

LONGEST = 2**17
"""Bytes of a request: mostly environment variables."""


def imported():
    """Return the versions of the distributions that modules have been imported from, by name."""
    packages = importlib.metadata.packages_distributions()
    names = {
        name for module in {module.partition(".")[0] for module in sys.modules} for name in packages.get(module, ())
    }
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def serve(connection):
    """Answer requests until nobody can make one any more."""
    while True:
        request, streams, _, _ = socket.recv_fds(connection, LONGEST, 2)
        if not request:
            return
        assert threading.active_count() == len([*Path("/proc/self/task").iterdir()]) == 1
        pid = os.fork()
        if pid == 0:
            connection.close()
            run(json.loads(request), streams)
        for stream in streams:
            os.close(stream)
        code = code_of(pid, connection, json.loads(request)["timeout"])
        with contextlib.suppress(BrokenPipeError):
            connection.send(json.dumps(code).encode())


def code_of(pid, connection, timeout):
    """Wait for a fork and return its exit code; None if it was killed, because it took too long or nobody waits."""
    process = os.pidfd_open(pid)
    ended, _, _ = select.select([process, connection], [], [], timeout)
    with contextlib.suppress(ProcessLookupError):  # It is not waited for yet, so the number is still its own.
        os.killpg(pid, signal.SIGKILL)
    os.close(process)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if process in ended else None


def run(request, streams):
    """Be the process of a script, as far as it can tell."""
    script, environ, code = request["arguments"][0], request["environ"], 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(environ)
        os.chdir(request["folder"])
        sys.argv[:] = request["arguments"]
        sys.path[:] = [str(Path(script).parent), *environ["PYTHONPATH"].split(os.pathsep), *REST]
        importlib.invalidate_caches()
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__file__ = script
        exec(compile(Path(script).read_bytes(), script, "exec", dont_inherit=True), vars(main))  # noqa: S102
        code = 0
    except SystemExit as end:
        code = exit_code(end)
    except BaseException:  # noqa: BLE001 - whatever it is, an interpreter prints it and exits with 1
        traceback.print_exc()
    finally:
        # What an interpreter does at its end, but for taking all modules apart.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(end):
    """Return the code of a SystemExit, whose text, if it has one, is an error."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    # The folder of this file and PYTHONPATH come first, and are not those of the scripts.
    REST = sys.path[1 + len(os.environ["PYTHONPATH"].split(os.pathsep)) :]
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # What is older than a script refers to nothing of it, and is neither searched nor copied for it.
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        requests.send(json.dumps(imported()).encode())
        serve(requests)
