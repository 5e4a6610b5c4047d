"""Markdown on a terminal, with whole words: rich cuts what is wider than its column, such as the id of a patch."""

from __future__ import annotations

import re
import sys
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, MarkdownElement, TableElement
from rich.measure import Measurement
from rich.table import Table

__all__ = ["show"]

_WIDEST = 120
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([a-z-]+)\.md(?:#[^)]*)?\)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")
_UNLIMITED = 10_000


class _Table(TableElement):
    """Keeps words whole as long as they fit, and draws lines between the rows where cells have several."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                _fit(part, console, options)
            yield part


def _fit(table: Table, console: Console, options: ConsoleOptions) -> None:
    unlimited = options.update(width=_UNLIMITED)
    cells = [[Measurement.get(console, unlimited, cell) for cell in column.cells] for column in table.columns]
    widths = [max(cell.minimum for cell in column) for column in cells]
    lengths = [max(cell.maximum for cell in column) for column in cells]
    around = Measurement.get(console, unlimited, table).maximum - sum(lengths)
    room = max(options.max_width - around, len(cells))
    if sum(lengths) <= room:
        return
    for _ in range(sum(widths) - room):
        widths[widths.index(max(widths))] -= 1
    for _ in range(room - sum(widths)):  # To the one that needs the most lines.
        lines = [length / width for length, width in zip(lengths, widths, strict=True)]
        widths[lines.index(max(lines))] += 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.overflow = width, "fold"
    table.show_lines = True


class _Page(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "table_open": _Table}


def show(text: str) -> bool:
    """Render a page on stdout, if that is a terminal.

    Args:
        text: The page. A link to another page becomes the command that shows it; a picture becomes its description.

    Returns:
        Whether it is a terminal; nothing is written if it is not.
    """
    console = Console(file=sys.stdout)
    if console.is_terminal:
        text = _IMAGE.sub(r"(Picture: \1.)", _LINK.sub(_command, text))
        console.print(_Page(text, hyperlinks=False), width=min(console.width, _WIDEST))
    return console.is_terminal


def _command(link: re.Match[str]) -> str:
    words, topic = link.groups()
    command = f"`nrl-patches docs {topic}`"
    return command if words.lower().replace(" ", "-") == topic else f"{words} ({command})"
