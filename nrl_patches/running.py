"""Looking into running processes: the records that they keep (see ``record.py``). Used by the command only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrl_patches.cli_run import GROUP, VARIABLE
from nrl_patches.record import NAME

__all__ = ["Running", "descendants", "is_in_trouble", "look_into"]

_PROC = Path("/proc")
_ATTEMPTS = 5
_FIELDS = {
    "pid": int,
    "version": str,
    "package": str,
    "activated_by": str,
    "strict": bool,
    "notes": list,
    "failure": str,
    "statuses": list,
}
"""What a record may have, by name; nothing else is told."""
_REQUIRED = {"pid", "activated_by", "statuses"}
_ROW = ("id", "state", "reason", "notes")


@dataclass(frozen=True)
class Running:
    """What a process says about its patches.

    Attributes:
        pid: The process.
        command: Its command line.
        records: What each copy of nrl_patches in it tells; mostly one.
        problem: Why there is no record; empty if there is one.
        unpatched: Whether that leaves something unpatched: torch, without which no target is imported, is loaded there.
    """

    pid: int
    command: str
    records: tuple[dict[str, Any], ...] = ()
    problem: str = ""
    unpatched: bool = False

    def __str__(self) -> str:
        """Return everything, as lines for people."""
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
            lines += [f"  {note}" for note in record.get("notes", ())]
            lines += [f"  failed: {record['failure'].rstrip()}"] if record.get("failure") else []
            for status in record["statuses"]:
                lines.append(f"  {status['state']:<14}{status['id']}")
                lines.append(f"  {'':14}{'; '.join((status['reason'], *status['notes']))}")
        # What a process says of itself must not reach the terminal as commands.
        return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in "\n".join(lines))


def look_into(pid: int) -> Running:
    """Read the records of a process; whatever prevents that is said in the result."""
    folder = _PROC / str(pid)
    if not _PROC.joinpath("self", "fd").exists():
        return Running(pid, "?", problem="cannot be looked into: this system has no /proc")
    command = "?"
    try:
        command = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        command = command or folder.joinpath("comm").read_text().strip()
        records = tuple(_explain_copy(record, pid) for record in _records(folder))
        problem, unpatched = ("", False) if records else _explain_absence(folder)
    except (FileNotFoundError, ProcessLookupError):
        return Running(pid, "?", problem="there is no such process")
    except PermissionError:
        return Running(pid, command, problem="cannot be looked into: it belongs to another user")
    return Running(pid, command, records, problem, unpatched)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have started, by id."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        children.setdefault(_parent_of(folder), []).append(int(folder.name))
    found: list[int] = []
    asked = [pid]
    while asked:
        offspring = children.get(asked.pop(), [])
        found += offspring
        asked += offspring
    return sorted(found)


def is_in_trouble(process: Running) -> bool:
    """Whether a patch has drifted or failed in a process, or nrl_patches could not be imported or is missing there."""
    return process.unpatched or any(
        record.get("failure") or any(status["state"] in {"drifted", "failed"} for status in record["statuses"])
        for record in process.records
    )


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for link in sorted(folder.joinpath("fd").iterdir(), key=lambda entry: int(entry.name)):
        record = _read(link)
        if record is not None:
            yield record


def _read(link: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError):  # Closed meanwhile.
        if str(link.readlink()).removesuffix(" (deleted)") != f"/memfd:{NAME}":
            return None
        for _ in range(_ATTEMPTS):
            with suppress(ValueError, RecursionError):  # In the middle of a change, or not of our making.
                record = json.loads(link.read_bytes())
                if _is_whole(record):
                    rows = [{name: row[name] for name in _ROW} for row in record["statuses"]]
                    return {name: record[name] for name in _FIELDS if name in record} | {"statuses": rows}
    return None


def _is_whole(record: Any) -> bool:
    # Anybody may make a file of that name, with anything in it.
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
    note = f"this is the record of process {record['pid']}: the process was forked from it unnoticed by Python"
    return {**record, "notes": [*record.get("notes", ()), note]}


def _explain_absence(folder: Path) -> tuple[str, bool]:
    environ, whose = _environ(folder)
    if environ.get(b"NRL_PATCHES", b"").lower() in _OFF:
        return f"no record: NRL_PATCHES=0 in {whose}", False
    if GROUP.encode() in environ.get(VARIABLE.encode(), b"").replace(b" ", b"").split(b","):
        return "no record: under `nrl-patches run`, and no package with a target was imported there", False
    # Shells, multiprocessing's own helpers and Ray's agents do without us, and are no problem.
    if b"/libtorch_python." in folder.joinpath("maps").read_bytes():
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
    texts = folder.joinpath("environ").read_bytes().split(b"\0")
    settings = (text.partition(b"=") for text in texts)
    return {name: value.strip() for name, equals, value in settings if equals}, b"=" in texts[0]


def _parent_of(folder: Path) -> int:
    try:
        (number,) = _status_field(folder, "PPid")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # It has ended meanwhile, or is hidden from us.
        return 0
    return int(number)


def _status_field(folder: Path, name: str) -> list[str]:
    for line in folder.joinpath("status").read_text(errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1:]
    return []


_NOT_IMPORTED = "nrl_patches was not imported there, or its file descriptors were closed since"
_OFF = (b"0", b"false", b"no", b"off")
