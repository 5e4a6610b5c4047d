"""Tables for people: their layout, their colours, and what is folded into one line.

Imports rich, so it is imported where a table is shown and nowhere else.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nrl_patches.processes.inspection import printable

__all__ = ["Ledger", "Line", "fold", "rank", "text", "text_of"]

_BAD, _WARN, _GOOD, _DONE, _FAINT = "bold red", "magenta", "green", "bold green", "dim"
# Without yellow, white, blue and cyan, each of which is hard to read on either a light or a dark background.
_STYLES = {
    "failed": _BAD,
    "drifted": _BAD,
    "error": _BAD,
    "ineffective": _BAD,
    "uncovered": _BAD,
    "obsolete": _BAD,
    "problem": _BAD,
    "not repaired": _BAD,
    "unmeasured": _WARN,
    "undecided": _WARN,
    "unknown": _WARN,
    "repaired if forced": _WARN,
    "hit": _WARN,
    "begins": _BAD,
    "stays": _WARN,
    "affected": _WARN,
    "applied": _DONE,
    "needed": _DONE,
    "repaired": _DONE,
    "pending": _GOOD,
    "ends": _GOOD,
    "known": _WARN,
    "note": _WARN,
    "disabled": _WARN,
    "not affected": _FAINT,
    "not-affected": _FAINT,
    "not hit": _FAINT,
    "needless": _FAINT,
    "none": _FAINT,
    "not installed": _FAINT,
    "not-installed": _FAINT,
    "not in the pins": _FAINT,
}
"""The style of every word that a first column has, the most important word first."""

_GAP = 2
_LEAST = 40
"""Columns that a sentence needs to be read in a column of its own."""


@dataclass(frozen=True)
class Line:
    """One row of a table.

    Attributes:
        word: What it comes to, in a word or two.
        subject: What it is about: an id, a variable, a file.
        detail: The sentence behind it; each line of it begins on a line of its own.
        title: What the subject is, as a sentence.
        short: A second word, or a number.
    """

    word: str
    subject: str
    detail: str = ""
    title: str = ""
    short: str = ""


class Ledger:
    """A table with a column for each field of a line; what finds no room beside the subject stands below it.

    A subject is never cut: an id is there to be copied.

    Args:
        lines: The rows.
        headings: Of the four columns: word, subject, short and detail.
    """

    def __init__(self, lines: Iterable[Line], headings: tuple[str, str, str, str]) -> None:
        self._lines = list(lines)
        self._headings = headings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table for the width that there is, between empty lines; nothing if it has no row."""
        if not self._lines:
            return
        word, subject, short, detail = self._headings
        words, subjects, shorts = (
            max(len(name), *(len(getattr(line, field)) for line in self._lines)) + _GAP
            for name, field in ((word, "word"), (subject, "subject"), (short, "short"))
        )
        room = options.max_width - words - shorts
        wide = room - subjects >= _LEAST
        if any(line.title for line in self._lines):
            subjects = max(subjects, room // 2)
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
            expand=wide,
            border_style=_FAINT,
        )
        table.add_column(word, overflow="fold", min_width=words - _GAP)
        table.add_column(subject, overflow="fold", width=subjects - _GAP if wide else None)
        if wide and short:
            table.add_column(short, overflow="fold", min_width=shorts - _GAP)
        if wide:
            table.add_column(detail, overflow="fold", ratio=1)
        for line in self._lines:
            table.add_row(*(_in_columns(line, short=bool(short)) if wide else _stacked(line)))
        yield ""
        yield table
        yield ""


def rank(word: str) -> int:
    """Return the place of a word among all words of a first column, the most important one first.

    Args:
        word: One of them; any other is the least important.
    """
    return list(_STYLES).index(word) if word in _STYLES else len(_STYLES)


def text(words: str, style: str = "") -> Text:
    """Return words as they are: without markup, and without what would control the terminal.

    Args:
        words: The words, from wherever they come.
        style: A style of rich.
    """
    return Text(printable(words), style)


def fold(words: Iterable[str], names: Iterable[str] = ()) -> Text:
    """Return the line that takes the place of rows without news.

    Args:
        words: The word of each row.
        names: The distributions that the last of these words is about.
    """
    counts = Counter(words)
    told = ", ".join(f"{counts[word]} {word}" for word in sorted(counts, key=rank))
    about = ", ".join(sorted(set(names)))
    return text(f"{told}{': ' * bool(about)}{about} (--all shows every row)", _FAINT)


def text_of(parts: Iterable[RenderableType], width: int, *, color: bool) -> str:
    """Return what a terminal is to show.

    Args:
        parts: Tables and lines, one below the other.
        width: The columns of the terminal.
        color: Whether it shows colours and other attributes.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        color_system="standard" if color else None,
        force_terminal=color,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _in_columns(line: Line, *, short: bool) -> Iterator[RenderableType]:
    yield _word(line.word)
    title = [text(line.title, _FAINT)] if line.title else []
    yield Group(_subject(line), *title)
    if short:
        yield _word(line.short)
    yield text(line.detail, _shade(line))


def _stacked(line: Line) -> Iterator[RenderableType]:
    yield _word(line.word)
    below = [text(line.title, _FAINT)] if line.title else []
    beside = [part for part in (_word(line.short), text(line.detail, _shade(line))) if part]
    below += [Text("; ").join(beside)] if beside else []
    yield Group(_subject(line), *(Padding(part, (0, 0, 0, _GAP)) for part in below))


def _word(word: str) -> Text:
    return text(word, _STYLES.get(word, ""))


def _subject(line: Line) -> Text:
    return text(line.subject, _shade(line) or "bold")


def _shade(line: Line) -> str:
    return _FAINT if _STYLES.get(line.word) == _FAINT else ""
