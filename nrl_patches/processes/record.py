"""The record of its patches that a process keeps for ``nrl-patches status --pid``.

The record is an anonymous file in memory (``memfd_create``). Nothing is written to disk. It is among the
open files of the process, for those who may inspect it, and is removed when the process exits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nrl_patches.hosts.door import write_record

__all__ = ["ProcessRecord"]


class ProcessRecord:
    """The record of this process; a forked child gets its own, with the same content."""

    def __init__(self) -> None:
        self._content: dict[str, Any] = {}
        self._changes = 0
        self._length = 0
        self._fd = -1
        self._pid = -1
        self._identity: tuple[int, int] | None = None
        os.register_at_fork(after_in_child=self._after_fork)

    def publish(self, content: Mapping[str, Any]) -> None:
        """Replace the content. Callers must ensure that no two threads do so at once.

        Does nothing where there are no anonymous files: macOS, or a sandbox that forbids them.

        Args:
            content: The fields of the record, serialisable as JSON.
        """
        self._content = dict(content)
        with suppress(OSError, AttributeError, ImportError):
            self._write()

    def _write(self) -> None:
        self._changes += 1
        # A reader knows from the two numbers that it did not look in the middle of a change.
        text = json.dumps({"change": self._changes, "pid": os.getpid(), **self._content, "complete": self._changes})
        data = text.encode()
        if self._pid != os.getpid() or not self._is_there():
            self._replace()
        os.pwrite(self._fd, data.ljust(self._length), 0)
        self._length = max(self._length, len(data))

    def _replace(self) -> None:
        if self._is_there():  # Of the process that this one was forked from, which keeps writing to it.
            os.close(self._fd)
        self._fd = write_record("")
        self._identity = _identity(self._fd)
        self._pid = os.getpid()
        self._length = 0

    def _is_there(self) -> bool:
        # Daemons close every file descriptor they find, and the number may have been reused.
        try:
            return self._fd >= 0 and _identity(self._fd) == self._identity
        except OSError:
            return False

    def _after_fork(self) -> None:
        self._pid = -1  # In another PID namespace, the child may have the number of its parent.
        if self._content:
            self.publish(self._content)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
