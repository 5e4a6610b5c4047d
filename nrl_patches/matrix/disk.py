"""What a folder takes of the disk."""

from __future__ import annotations

import stat
from pathlib import Path

__all__ = ["disk_usage"]


def disk_usage(folder: Path) -> int:
    """Return the bytes that are free once a folder is deleted.

    What several names in it share counts once, and what has a name elsewhere as well (an installer's cache, whose files
    it links) not at all.

    Args:
        folder: The folder.
    """
    sizes: dict[tuple[int, int], int] = {}
    elsewhere: dict[tuple[int, int], int] = {}
    for file in folder.rglob("*"):
        status = file.lstat()
        inode = status.st_dev, status.st_ino
        sizes[inode] = status.st_blocks * 512
        # The links of a folder are the folders in it.
        names = 1 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        elsewhere[inode] = elsewhere.get(inode, names) - 1
    return sum(size for inode, size in sizes.items() if not elsewhere[inode])
