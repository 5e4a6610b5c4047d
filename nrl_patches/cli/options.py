"""What the subcommands share: option types, checks of output files, and exit codes."""

from __future__ import annotations

import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nrl_patches.errors import Problem

__all__ = [
    "NO_VERDICT",
    "SECONDS",
    "CannotSayError",
    "check_folder",
    "check_places",
    "columns",
    "drawn",
    "in_color",
    "on_terminal",
    "read_seconds",
    "show",
    "write_report",
]

NO_VERDICT = 3
"""The exit code of a command that could not do its work; 1 is an answer, 2 is a usage error."""

_NARROWEST, _PIPE = 20, 120
"""The columns that a table has at least, and those that it has where there is no terminal."""

_LONGEST = 7 * 24 * 3600.0

if TYPE_CHECKING:
    from rich.console import RenderableType

    _SecondsType = click.ParamType[float]  # Generic for type checkers, and at run time from click 8.4 on.
else:
    _SecondsType = click.ParamType


class CannotSayError(click.ClickException):
    """Ends a command that could not do its work, with the exit code :data:`NO_VERDICT`."""

    exit_code = NO_VERDICT


def read_seconds(value: object) -> float:
    """Return a number of seconds that a process may be given.

    Args:
        value: As the user typed it.

    Raises:
        ValueError: It is not a number of seconds above 0, or is more than a week.
    """
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST:  # NaN fails both comparisons.
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
"""The type of an option that takes a number of seconds."""


def check_places(places: Sequence[tuple[str, str]]) -> None:
    """Check, before anything else is done, that reports can be written.

    Args:
        places: The files, each with the option or the variable that names it.

    Raises:
        click.UsageError: One cannot be written, or two are the same.
    """
    seen: dict[Path, str] = {}
    for place, subject in places:
        found = _obstacle(place)
        file = Path(place).resolve()
        if not found and file in seen:
            found = f"the file of another report, named by {seen[file]}"
        if found:
            step = "name a file in an existing folder that you may write to"
            problem = Problem(f"{subject} {place}", expected="a writable file", found=found, next_step=step)
            raise click.UsageError(str(problem))
        if not file.exists() or file.is_file():  # A terminal or a pipe may get several reports.
            seen[file] = subject


def check_folder(folder: Path) -> None:
    """Check, before anything else is done, that reports can be written into a folder; create it if necessary.

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
        step = "name a folder that you may create or write to"
        problem = Problem(str(folder), expected="a writable folder for the report", found=str(error), next_step=step)
        raise CannotSayError(str(problem)) from error


def on_terminal() -> bool:
    """Return whether stdout is read by people, who get tables: it is a terminal, or ``FORCE_COLOR`` says so."""
    forced = os.environ.get("FORCE_COLOR", "") not in {"", "0"}
    return forced or (sys.stdout is not None and sys.stdout.isatty())


def show(parts: Iterable[RenderableType]) -> None:
    """Print tables and lines on the terminal.

    Args:
        parts: What :mod:`nrl_patches.tables` makes, and other things that rich renders.
    """
    click.echo(drawn(parts), nl=False, color=in_color())


def drawn(parts: Iterable[RenderableType]) -> str:
    """Return tables and lines as stdout is to show them.

    Args:
        parts: As of :func:`show`.
    """
    from nrl_patches.tables import text_of  # noqa: PLC0415 - without a table, nobody needs rich

    return text_of(parts, columns(), color=in_color())


def columns() -> int:
    """Return how wide a table may be: as the terminal, or as ``COLUMNS`` says."""
    return max(_NARROWEST, shutil.get_terminal_size((_PIPE, 24)).columns)


def in_color() -> bool:
    """Return whether stdout shows colours: ``NO_COLOR`` and ``TERM=dumb`` forbid them on a terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    return on_terminal() and not plain


def write_report(text: str, place: str, *, append: bool = False) -> bool:
    """Write a report; print it if that fails, so that no measurement is lost.

    Args:
        text: The report; what it has of colours stays on stdout only, if that shows any.
        place: The file; - is stdout.
        append: Whether it is appended to the content of the file.

    Returns:
        Whether it was written.
    """
    try:
        if place == "-":
            click.echo(text, nl=False, color=in_color() or None)
        else:
            with Path(place).open("a" if append else "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        step = f"save what is printed on {'stderr' if place == '-' else 'stdout'}"
        problem = Problem(place, expected="a report to be written", found=str(error), next_step=step)
        click.echo(problem, err=True)
        click.echo(text, nl=False, err=place == "-")
        return False
    return True


def _obstacle(place: str) -> str:
    """Return why a file cannot be written; empty if it can. Changes nothing."""
    file = Path(os.path.realpath(place))
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return _obstacle_to_new(file)
    except (OSError, ValueError) as error:
        return str(error)
    if stat.S_ISDIR(mode):
        return "a folder"
    # Opening and closing a pipe would signal the end of the file to its reader.
    if not stat.S_ISREG(mode):
        return "" if os.access(file, os.W_OK) else "no permission to write to it"
    return _try(file, os.O_WRONLY)


def _obstacle_to_new(file: Path) -> str:
    if not file.parent.is_dir():
        return f"no folder {file.parent}"
    found = _try(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    if not found:
        file.unlink()
    return found


def _try(file: Path, flags: int) -> str:
    # Only an attempt takes everything into account: permissions, read-only file systems, root, long names.
    try:
        os.close(os.open(file, flags, 0o666))
    except OSError as error:
        return str(error)
    return ""
