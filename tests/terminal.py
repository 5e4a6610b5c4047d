"""Runs a command on a terminal of its own, and returns what it printed there."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from contextlib import suppress

ROWS = 50
FROM_OUTSIDE = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "NRL_PATCHES_DISABLE")


def run_on_terminal(command, columns, environ, cwd=None):
    """Return the exit code, and everything that the command printed, colours included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, cwd=cwd)
    os.close(theirs)
    printed = b""
    with suppress(OSError):  # Linux says EIO when the last one has closed its end.
        while more := os.read(ours, 65536):
            printed += more
    os.close(ours)
    return process.wait(timeout=60), printed.decode().replace("\r\n", "\n")
