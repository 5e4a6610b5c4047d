"""Tables for people: their layout, their colours, and what is folded into one line.

Imports rich, so it is imported where a table is shown and nowhere else.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nrl_patches.processes.inspection import printable

__all__ = ["WORDS", "Ledger", "Line", "fold", "rank", "text", "text_of"]

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
"""The style of every word that a column has, the most important word first."""

WORDS = tuple(_STYLES)
"""These words, in this order."""

_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+$")
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
        least: How wide a column of details must be.
        fade: Whether rows without news are faint.
    """

    def __init__(
        self, lines: Iterable[Line], headings: tuple[str, str, str, str], *, least: int = _LEAST, fade: bool = True
    ) -> None:
        self._lines = list(lines)
        self._headings = headings
        self._least = least
        self._fade = fade

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table for the width that there is, between empty lines; nothing if it has no row."""
        if not self._lines:
            return
        width, headings = options.max_width, self._headings
        words, subjects, shorts = (
            max(cell_len(heading), *(cell_len(getattr(line, field)) for line in self._lines)) + _GAP
            for heading, field in zip(headings, ("word", "subject", "short"), strict=False)
        )
        words = min(words, width // 2)
        shorts = shorts if headings[2] else 0
        room = width - words - shorts
        wide = room - subjects >= self._least
        if any(line.title for line in self._lines):
            subjects = max(subjects, min(room // 2, room - self._least))
        # Every width is set here: where a word is longer than its column, rich's own choice may lose the end of it.
        widths = [words - _GAP, width - words]
        if wide:
            widths = [words - _GAP, subjects - _GAP, shorts - _GAP, room - subjects]
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), border_style=_FAINT
        )
        for heading, column in zip(headings, widths, strict=False):
            if column > 0:
                table.add_column(heading, overflow="fold", width=column)
        for line in self._lines:
            shade = _FAINT if self._fade and _STYLES.get(line.word) == _FAINT else ""
            table.add_row(*(_in_columns(line, shade, short=bool(shorts)) if wide else _stacked(line, shade)))
        yield ""
        yield table
        yield ""


def rank(word: str) -> int:
    """Return the place of a word among all words of a first column, the most important one first.

    Args:
        word: One of them; any other is the least important.
    """
    return WORDS.index(word) if word in WORDS else len(WORDS)


def text(words: str, style: str = "") -> Text:
    """Return words as they are: without markup, and without what would control the terminal.

    Args:
        words: The words, from wherever they come.
        style: A style of rich.
    """
    return Text(printable(words), style, overflow="fold")


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
    # Without what only fills a row, which a narrower terminal would fold, and a copy would keep.
    lines = (_END.sub(lambda end: end[0].replace(" ", ""), line) for line in out.getvalue().splitlines())
    return "".join(f"{line}\n" for line in lines)


def _in_columns(line: Line, shade: str, *, short: bool) -> Iterator[RenderableType]:
    yield _word(line.word)
    title = [text(line.title, _FAINT)] if line.title else []
    yield Group(text(line.subject, shade or "bold"), *title)
    if short:
        yield text(line.short, _STYLES.get(line.short) or shade)
    yield text(line.detail, shade)


def _stacked(line: Line, shade: str) -> Iterator[RenderableType]:
    yield _word(line.word)
    below = [text(line.title, _FAINT)] if line.title else []
    beside = [part for part in (text(line.short, _STYLES.get(line.short) or shade), text(line.detail, shade)) if part]
    below += [Text("; ", shade).join(beside)] if beside else []
    yield Group(text(line.subject, shade or "bold"), *(Padding(part, (0, 0, 0, _GAP)) for part in below))


def _word(word: str) -> Text:
    return text(word, _STYLES.get(word, ""))
