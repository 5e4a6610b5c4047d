"""Run a script and end every process that it leaves behind, daemons included.

    python supervised.py SECONDS SCRIPT [ARGUMENT]...

Engines, servers and Ray clusters are made of many processes. A test that fails or hangs must leave none of them, and
none may keep the test's pipes open.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def children():
    lists = (file.read_text(encoding="utf-8") for file in Path("/proc/self/task").glob("*/children"))
    return [int(pid) for text in lists for pid in text.split()]


def main():
    seconds, *command = sys.argv[1:]
    # Whoever loses its parent becomes a child of this process, so nobody escapes.
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit("prctl")
    # With a short name, because sockets are made there.
    with tempfile.TemporaryDirectory(prefix="nrl") as folder:
        script = subprocess.Popen([sys.executable, *command], env=os.environ | {"TMPDIR": folder})
        try:
            code = script.wait(float(seconds))
        except subprocess.TimeoutExpired:
            print(f"{command} took longer than {seconds} s", file=sys.stderr)
            code = 124
        while left := children():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    sys.exit(code)


if __name__ == "__main__":
    main()
