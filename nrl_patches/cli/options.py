"""What the options of the command have in common: seconds, places for reports, and exit codes."""

from __future__ import annotations

import math
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nrl_patches.declaration import Patch
from nrl_patches.engine.activation import default_activation
from nrl_patches.errors import Problem

__all__ = [
    "NO_VERDICT",
    "SECONDS",
    "CannotSayError",
    "check_folder",
    "check_places",
    "find_patch",
    "read_seconds",
    "write_report",
]

NO_VERDICT = 3
"""The exit code of a command that could not do what it was asked for; 1 and 2 are an answer, and a misuse."""

_LONGEST = 7 * 24 * 3600.0

if TYPE_CHECKING:
    _SecondsType = click.ParamType[float]  # Generic for type checkers, and at run time from click 8.4 on.
else:
    _SecondsType = click.ParamType


class CannotSayError(click.ClickException):
    """Ends a command that could not do what it was asked for."""

    exit_code = NO_VERDICT


def read_seconds(value: object) -> float:
    """Return a number of seconds that a process may be given.

    Args:
        value: As the user typed it.

    Raises:
        ValueError: It is no number of seconds, or one that nobody waits for.
    """
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST:  # What is not a number is neither.
        raise ValueError(f"expected seconds above 0, {_LONGEST:g} (a week) at most; found {str(value)[:60]!r}")
    return seconds


class _Seconds(_SecondsType):
    name = "seconds"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return read_seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SECONDS = _Seconds()
"""The type of an option that takes a time."""


def find_patch(patch_id: str) -> Patch:
    """Return the patch of an id that the user has typed.

    Args:
        patch_id: The id.

    Raises:
        click.BadParameter: There is no such patch.
    """
    registry = default_activation().registry
    if patch_id in registry.retired:
        raise click.BadParameter(f"{patch_id} is retired: {registry.retired[patch_id]}", param_hint="ID")
    if patch_id not in registry.patches:
        raise click.BadParameter(f"{patch_id!r} is no patch; `nrl-patches list` shows every id", param_hint="ID")
    return registry.patches[patch_id]


def check_places(places: Sequence[tuple[str, str]]) -> None:
    """Check before anything else is done that reports can be written.

    Args:
        places: The files, each with what names it: an option or a variable.

    Raises:
        click.UsageError: One cannot be written, or two are the same.
    """
    seen: dict[Path, str] = {}
    for place, subject in places:
        found = _obstacle(place)
        file = Path(place).resolve()
        if not found and file in seen:
            found = f"the file that another report goes to, as {seen[file]} says"
        if found:
            step = "name a file in a folder that is there and may be written to"
            said = Problem(f"{subject} {place}", expected="a place for a report", found=found, next_step=step)
            raise click.UsageError(str(said))
        if not file.exists() or file.is_file():  # Whatever else is there, a terminal or a pipe, may get several.
            seen[file] = subject


def check_folder(folder: Path) -> None:
    """Check before anything else is done that reports can be written into a folder, which is made if it is not there.

    Args:
        folder: The folder.

    Raises:
        CannotSayError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        step = "name a folder that can be made or written to"
        said = Problem(str(folder), expected="a folder for the report", found=str(error), next_step=step)
        raise CannotSayError(str(said)) from error


def write_report(text: str, place: str, *, append: bool = False) -> bool:
    """Write a report, or print it where that fails after all: what was measured is not to be lost.

    Args:
        text: The report.
        place: The file; - is stdout.
        append: Whether it is added to what the file has.

    Returns:
        Whether it was written.
    """
    try:
        if place == "-":
            click.echo(text, nl=False)
        else:
            with Path(place).open("a" if append else "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        step = f"keep what is printed on {'stderr' if place == '-' else 'stdout'}"
        said = Problem(place, expected="a report to be written", found=str(error), next_step=step)
        click.echo(said, err=True)
        click.echo(text, nl=False, err=place == "-")
        return False
    return True


def _obstacle(place: str) -> str:
    """Say why a file cannot be written; empty if it can. Leaves everything as it is."""
    file = Path(os.path.realpath(place))
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return _obstacle_to_new(file)
    except (OSError, ValueError) as error:
        return str(error)
    if stat.S_ISDIR(mode):
        return "a folder"
    # Opening a pipe and closing it again would end the reading of whoever waits at its other end.
    if not stat.S_ISREG(mode):
        return "" if os.access(file, os.W_OK) else "that it may not be written to"
    return _try(file, os.O_WRONLY)


def _obstacle_to_new(file: Path) -> str:
    if not file.parent.is_dir():
        return f"no folder {file.parent}"
    found = _try(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    if not found:
        file.unlink()
    return found


def _try(file: Path, flags: int) -> str:
    # Trying is the only way to know: permissions, file systems that are mounted read-only, root, long names.
    try:
        os.close(os.open(file, flags, 0o666))
    except OSError as error:
        return str(error)
    return ""
