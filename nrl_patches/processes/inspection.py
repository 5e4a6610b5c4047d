"""Inspect running processes: read the records that they keep (see ``record.py``). Used by the command only."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nrl_patches.engine.status import TROUBLE
from nrl_patches.hosts.door import OFF, RECORD
from nrl_patches.processes.autowrapt import GROUP, VARIABLE

__all__ = ["Running", "descendants", "is_in_trouble", "look_into", "printable"]

_PROC = Path("/proc")
_ATTEMPTS = 5
_SHOWN = 4096  # Bytes of a command line.
_COPIES = 16  # Records of one process.
_LONGEST = 2**20  # Bytes of a record; a genuine one has some thousands.
_LONGEST_ENVIRON, _LONGEST_MAPS = 2**23, 2**26  # More than Linux lets a process have without asking for it.
_FIELDS = {
    "pid": int,
    "version": str,
    "package": str,
    "activated_by": str,
    "strict": bool,
    "notes": list,
    "failure": str,
    "waits": str,
    "statuses": list,
}
"""The fields of a record and their types; other fields are ignored."""
_REQUIRED = {"pid", "activated_by", "statuses"}
_ROW = ("id", "state", "reason", "notes")


class _TooLongError(Exception):
    """A record is too long to be read; the message has its size."""


@dataclass(frozen=True)
class Running:
    """What a process reports about its patches.

    Attributes:
        pid: The process.
        command: Its command line.
        records: One for each copy of nrl_patches in it, so mostly one.
        problem: Why there is no record; empty if there is one.
        unpatched: Whether that leaves something unpatched: torch, without which no target is imported, is loaded there.
    """

    pid: int
    command: str
    records: tuple[dict[str, Any], ...] = ()
    problem: str = ""
    unpatched: bool = False

    def __str__(self) -> str:
        """Return everything as readable lines."""
        return self.told()

    def told(self, *, statuses: bool = True) -> str:
        """Return it as readable lines.

        Args:
            statuses: Whether the status of each patch is among them.
        """
        lines = [f"process {self.pid} ({self.command})"]
        lines += [f"  {self.problem}"] if self.problem else []
        for record in self.records:
            strict = ", strict" if record.get("strict") else ""
            package = f" in {record['package']}" if "package" in record else ""
            lines.append(
                f"  nrl_patches {record.get('version', '?')}{package}, activated by {record['activated_by']}{strict}"
            )
            lines += ["  as of its last change, or of the last call of nrl_patches.status() there"] * bool(
                record["statuses"]
            )
            lines += [f"  {record['waits']}"] if record.get("waits") else []
            lines += [f"  {note}" for note in record.get("notes", ())]
            lines += [f"  failed: {record['failure'].rstrip()}"] if record.get("failure") else []
            for status in record["statuses"] if statuses else ():
                lines.append(f"  {status['state']:<14}{status['id']}")
                lines.append(f"  {'':14}{'; '.join((status['reason'], *status['notes']))}")
        return printable("\n".join(lines))


def look_into(pid: int) -> Running:
    """Read the records of a process. Never raises: what prevents it is the ``problem`` of the result.

    Args:
        pid: The process.

    Returns:
        Its command line and up to 16 records, one per copy of nrl_patches in it.
    """
    folder = _PROC / str(pid)
    if not _PROC.joinpath("self", "fd").exists():
        return Running(pid, "?", problem="cannot be inspected: this system has no /proc")
    command = "?"
    try:
        text = _beginning_of(folder / "cmdline", _SHOWN) or _beginning_of(folder / "comm", _SHOWN)
        command = text.replace(b"\0", b" ").decode(errors="replace").strip()
        records = tuple(_explain_copy(record, pid) for record in islice(_records(folder), _COPIES))
        problem, unpatched = ("", False) if records else _explain_absence(folder)
    except (FileNotFoundError, ProcessLookupError):
        return Running(pid, "?", problem="there is no such process")
    except PermissionError:
        return Running(pid, command, problem="cannot be inspected: it belongs to another user")
    except _TooLongError as error:
        return Running(pid, command, problem=f"its record is not read: {error}")
    return Running(pid, command, records, problem, unpatched)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have started, by id.

    Args:
        pid: The process; without ``/proc``, it has none.
    """
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        children.setdefault(_parent_of(folder), []).append(int(folder.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        offspring = children.get(todo.pop(), [])
        found += offspring
        todo += offspring
    return sorted(found)


def is_in_trouble(process: Running) -> bool:
    """Whether a process lacks the patches, could not import them, or has one that drifted or failed.

    Args:
        process: What :func:`look_into` returned.
    """
    return process.unpatched or any(
        record.get("failure") or any(status["state"] in TROUBLE for status in record["statuses"])
        for record in process.records
    )


def printable(words: str) -> str:
    """Return words with what would control the terminal spelled out: a process must not be able to do that.

    Args:
        words: Any words; lines stay lines.
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in words)


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for link in sorted(folder.joinpath("fd").iterdir(), key=lambda entry: int(entry.name)):
        record = _read(link)
        if record is not None:
            yield record


def _read(link: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError):  # Closed meanwhile.
        if str(link.readlink()).removesuffix(" (deleted)") != f"/memfd:{RECORD}":
            return None
        for _ in range(_ATTEMPTS):
            with suppress(ValueError, RecursionError):  # In the middle of a change, or not a record.
                record = json.loads(_content_of(link))
                if _is_whole(record):
                    rows = [{name: row[name] for name in _ROW} for row in record["statuses"]]
                    return {name: record[name] for name in _FIELDS if name in record} | {"statuses": rows}
    return None


def _content_of(link: Path) -> bytes:
    # Any process may give the name to a pipe, which never opens, or to a file without end.
    fd = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if found.st_size > _LONGEST:
            raise _TooLongError(f"it has {found.st_size} bytes, where a record of nrl_patches has some thousands")
        return file.read(_LONGEST) if stat.S_ISREG(found.st_mode) else b""


def _beginning_of(file: Path, length: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(length)


def _has_mapped(folder: Path, needle: bytes) -> bool:
    # A process may have any number of mappings, with names of any length.
    with folder.joinpath("maps").open("rb") as maps:
        kept = b""
        for _ in range(_LONGEST_MAPS // _LONGEST):
            part = maps.read(_LONGEST)
            if needle in kept + part:
                return True
            if not part:
                return False
            kept = part[-len(needle) :]
    return False


def _is_whole(record: Any) -> bool:
    # Any process may create a file of that name, with any content.
    if not isinstance(record, dict) or record.get("change") != record.get("complete", object()):
        return False
    known = all(isinstance(record[name], kind) for name, kind in _FIELDS.items() if name in record)
    if not known or not record.keys() >= _REQUIRED or not _are_texts(record.get("notes", [])):
        return False
    return all(
        isinstance(row, dict)
        and isinstance(row.get("notes"), list)
        and _are_texts([*row["notes"], *(row.get(name) for name in _ROW if name != "notes")])
        for row in record["statuses"]
    )


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _explain_copy(record: dict[str, Any], pid: int) -> dict[str, Any]:
    own = _status_field(_PROC / str(pid), "NSpid")  # Its number in each of its namespaces.
    # An import that failed in the parent has failed for its forked children too.
    if not own or str(record["pid"]) in own or record.get("failure"):
        return record
    note = f"this is the record of process {record['pid']}: the process was forked from it without Python's knowledge"
    return {**record, "notes": [*record.get("notes", ()), note]}


def _explain_absence(folder: Path) -> tuple[str, bool]:
    environ, whose = _environ(folder)
    if environ.get(b"NRL_PATCHES", b"").decode(errors="replace").lower() in OFF:
        return f"no record: NRL_PATCHES=0 in {whose}", False
    if GROUP.encode() in environ.get(VARIABLE.encode(), b"").replace(b" ", b"").split(b","):
        return "no record: under `nrl-patches run`, and no package with a target was imported there", False
    # Shells, multiprocessing's own helpers and Ray's agents need no patches.
    if _has_mapped(folder, b"/libtorch_python."):
        return f"no record: torch is loaded, but {_NOT_IMPORTED}", True
    return f"no record: {_NOT_IMPORTED}", False


def _environ(folder: Path) -> tuple[dict[bytes, bytes], str]:
    environ, whole = _settings(folder)
    # vLLM's and Ray's processes overwrite its beginning with their titles. It was inherited from one that does not.
    ancestor = folder
    with suppress(OSError):
        while not whole and (parent := _parent_of(ancestor)):
            ancestor = _PROC / str(parent)
            inherited, whole = _settings(ancestor)
            environ = inherited | environ
    return environ, "its environment" if ancestor == folder else f"the environment of process {ancestor.name}"


def _settings(folder: Path) -> tuple[dict[bytes, bytes], bool]:
    texts = _beginning_of(folder / "environ", _LONGEST_ENVIRON).split(b"\0")
    settings = (text.partition(b"=") for text in texts)
    return {name: value.strip() for name, equals, value in settings if equals}, b"=" in texts[0]


def _parent_of(folder: Path) -> int:
    try:
        (number,) = _status_field(folder, "PPid")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # It has ended meanwhile, or is hidden from us.
        return 0
    return int(number)


def _status_field(folder: Path, name: str) -> list[str]:
    for line in _beginning_of(folder / "status", _LONGEST).decode(errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1:]
    return []


_NOT_IMPORTED = "nrl_patches was not imported there, or its file descriptors have been closed"
