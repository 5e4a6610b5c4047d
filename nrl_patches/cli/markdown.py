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
    """Breaks words that are too long, and draws lines between the rows where cells have several."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                for column in part.columns:
                    column.overflow = "fold"
                needs = Measurement.get(console, options.update(width=_UNLIMITED), part).maximum
                part.show_lines = needs > options.max_width
            yield part


class _Page(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "table_open": _Table}


def show(text: str) -> bool:
    """Render a page on stdout, if that is a terminal; return whether it is.

    Args:
        text: The page. A link to another page becomes the command that shows it; a picture becomes its description.
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
