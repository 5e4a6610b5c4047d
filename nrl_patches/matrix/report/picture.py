"""The matrix as a picture: patches down, releases across, one cell per verdict.

Colours are Okabe and Ito's, chosen so that the verdicts differ in brightness too; with a letter in each cell and a
hatch on what fails, nothing depends on seeing the colour. Importing this module needs nothing; the functions that draw
need Matplotlib, which the extra ``matrix`` brings.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nrl_patches.matrix.report.canvas import Canvas

__all__ = ["STYLES", "Panel", "Style", "Tile", "css_name", "declared_runs", "draw", "short_id", "to_png", "to_svg"]


class Style(NamedTuple):
    """How a verdict looks, in the picture and on the page.

    Attributes:
        letter: What stands in the cell; unique.
        fill: The colour of the cell, as ``#rrggbb``; unique.
        ink: The colour of the letter on it.
        hatch: Matplotlib's hatch pattern; set for what must be seen in greyscale.
        meaning: The line of the legend.
    """

    letter: str
    fill: str
    ink: str
    hatch: str
    meaning: str


STYLES: Mapping[str, Style] = {
    "needed": Style("N", "#56b4e9", "#000000", "", "the defect is there, and the patch repairs it"),
    "known": Style("K", "#009e73", "#000000", "", "the defect is there, and is not repaired here"),
    "not affected": Style("·", "#eeeeee", "#000000", "", "no defect, and none declared"),
    "obsolete": Style("O", "#f0e442", "#000000", "//////", "declared, but the defect is gone"),
    "uncovered": Style("U", "#d55e00", "#000000", "\\\\\\\\\\\\", "the defect is there, but not declared"),
    "ineffective": Style("I", "#000000", "#ffffff", "", "the defect is there with the patch too"),
    "error": Style("E", "#cc79a7", "#000000", "xxxxx", "the probe gave no answer"),
    "not measured": Style("", "#ffffff", "#000000", "", "no evidence for this release"),
}
"""Every verdict that a cell may have, in the order of the legend."""

# Lengths are CSS pixels: the picture is as wide as the text column of a README.
_WIDTH = 900
_LEFT = 134
_MOST = 60  # Columns in a line.
_STEP = (_WIDTH - _LEFT - 4) / _MOST
_ABOVE, _CELL = 12, 20  # Where the marks are, and the cell below.
_GOOD = ("first-bad", "first-good")
_NAME = 21  # Characters in a line of a patch's name.


@dataclass(frozen=True)
class Tile:
    """What is known of one patch on one release.

    Args:
        verdict: A key of :data:`STYLES`.
        declared: Whether the patch's ``affected`` names this release.
        note: The evidence in one line, or why there is none.

    Raises:
        ValueError: The verdict is unknown.
    """

    verdict: str
    declared: bool
    note: str

    def __post_init__(self) -> None:
        """Refuse what has no look."""
        if self.verdict not in STYLES:
            raise ValueError(f"a cell's verdict is one of {', '.join(STYLES)}, not {self.verdict!r}")


@dataclass(frozen=True)
class Panel:
    """The matrix of one distribution.

    Args:
        distribution: Its name, the title of the panel.
        columns: The releases, oldest first.
        rows: Patch id to its cells, one per column.
        column_notes: Release to what is special about it (yanked, a pre-release).
        first_bad: Patch id to the releases at which the defect appears.
        first_good: Patch id to the releases at which it is gone.

    Raises:
        ValueError: A row has not one cell per column, or something names a release that is no column.
    """

    distribution: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Tile, ...]]
    column_notes: Mapping[str, str] = field(default_factory=dict)
    first_bad: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first_good: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would be drawn in the wrong place."""
        for patch, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ValueError(f"{patch} has {len(cells)} cells for {len(self.columns)} releases")
        marked = set(self.column_notes).union(*self.first_bad.values(), *self.first_good.values())
        if unknown := marked.difference(self.columns):
            raise ValueError(f"{self.distribution} has no column for {', '.join(sorted(unknown))}")


def css_name(verdict: str) -> str:
    """Return a verdict as it is written in ids and class names.

    Args:
        verdict: The verdict, such as ``not affected``.
    """
    return verdict.replace(" ", "-")


def short_id(patch: str) -> str:
    """Return a patch id without its distribution, which the panel names.

    Args:
        patch: The id of the patch.
    """
    return patch.partition(".")[2] or patch


def declared_runs(cells: Sequence[Tile]) -> list[tuple[int, int]]:
    """Return the stretches of declared cells, each as the positions of its first and its last cell.

    Args:
        cells: One row, oldest release first.
    """
    inside = [position for position, cell in enumerate(cells) if cell.declared]
    starts = [position for position in inside if position - 1 not in inside]
    ends = [position for position in inside if position + 1 not in inside]
    return list(zip(starts, ends, strict=True))


def draw(panels: Sequence[Panel], *, caption: str) -> Figure:
    """Return the panels one above the other, under a caption and a legend.

    Args:
        panels: What to draw; an axis too long for one line goes on in the next.
        caption: What was measured, when and where.
    """
    from nrl_patches.matrix.report.canvas import Canvas, defaults  # noqa: PLC0415 - an extra

    with defaults():
        canvas = Canvas(_WIDTH, (_STEP, _CELL))
        y = _draw_legend(canvas, caption)
        for panel in panels:
            y = _draw_panel(canvas, panel, y)
        return canvas.finish(y)


def to_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file: the same bytes for the same figure, and nothing that refers to elsewhere.

    Args:
        figure: What :func:`draw` returned.
    """
    from nrl_patches.matrix.report.canvas import saved  # noqa: PLC0415 - an extra

    # Matplotlib's document type and metadata hold addresses and the date.
    svg = saved(figure, "svg", Title="nrl-patches matrix")
    svg = re.sub(rb"<!DOCTYPE.*?>\s*|<metadata>.*?</metadata>\s*", b"", svg, flags=re.DOTALL)
    return re.sub(rb"\n\s*", b"\n", svg)


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file, twice as fine as a screen: the same bytes for the same figure.

    Args:
        figure: What :func:`draw` returned.
    """
    from PIL import Image  # noqa: PLC0415 - comes with Matplotlib

    from nrl_patches.matrix.report.canvas import saved  # noqa: PLC0415 - an extra

    # A palette makes the file three times smaller, and the picture has few colours anyway.
    drawn = Image.open(io.BytesIO(saved(figure, "png"))).convert("RGB")
    file = io.BytesIO()
    drawn.quantize(64, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()


def _draw_legend(canvas: Canvas, caption: str) -> float:
    y = 12.0
    for line in textwrap.wrap(caption, 140):
        canvas.write(6, y, line, size=10)
        y += 15
    entries = [f"{verdict}: {style.meaning}" for verdict, style in STYLES.items()]
    entries += ["outlined: declared as affected", "the defect begins here", "the defect is gone from here on"]
    places = [(6 + 298 * (index // 4), y - 2 + 24 * (index % 4)) for index in range(len(entries))]
    for (left, top), (verdict, style) in zip(places, STYLES.items(), strict=False):
        canvas.cells([left], top, style, gid=f"legend-{css_name(verdict)}")
    (left, top), *marks = places[len(STYLES) :]
    canvas.outline(left, left + _STEP, top, gid="legend-declared")
    for good, (left, top) in enumerate(marks):
        canvas.marks([left], top + _CELL / 2, good=bool(good), gid=f"legend-{_GOOD[good]}")
    for (left, top), entry in zip(places, entries, strict=True):
        canvas.write(left + _STEP + 6, top + _CELL / 2, entry, size=9)
    return y + 24 * 4


def _draw_panel(canvas: Canvas, panel: Panel, y: float) -> float:
    canvas.write(6, y + 14, panel.distribution, size=11.5, weight="bold")
    y += 20
    columns = range(len(panel.columns))
    lines = math.ceil(len(columns) / _MOST)
    for line in range(lines):
        shown = columns[len(columns) * line // lines : len(columns) * (line + 1) // lines]
        y = _draw_line(canvas, panel, shown, y)
    for label, note in panel.column_notes.items():
        for text in textwrap.wrap(f"* {label}: {note}", 120):
            canvas.write(_LEFT, y + 4, text, size=8.5)
            y += 12
    return y + 6


def _draw_line(canvas: Canvas, panel: Panel, shown: range, y: float) -> float:
    """Draw some columns of a panel and return where the space below them begins."""
    lefts = {position: _LEFT + _STEP * index for index, position in enumerate(shown)}
    for patch, cells in panel.rows.items():
        top = y + _ABOVE
        for verdict, style in STYLES.items():
            same = [left for at, left in lefts.items() if cells[at].verdict == verdict]
            canvas.cells(same, top, style, gid=f"{css_name(verdict)}-{patch}-{shown.start}")
        for good, changes in enumerate((panel.first_bad, panel.first_good)):
            changed = [left for at, left in lefts.items() if panel.columns[at] in changes.get(patch, ())]
            canvas.marks(changed, top - 5, good=bool(good), gid=f"{_GOOD[good]}-{patch}-{shown.start}")
        for first, last in declared_runs(cells):
            inside = [at for at in shown if first <= at <= last]
            if inside:
                left, right = lefts[inside[0]], lefts[inside[-1]] + _STEP
                gid = f"declared-{patch}-{inside[0]}-{inside[-1]}"
                # What goes on in another line stays open there.
                canvas.outline(left, right, top, gid=gid, closed=(first in inside, last in inside))
        names = _broken(short_id(patch))
        for index, name in enumerate(names):
            middle = top + _CELL / 2 + 10 * (index + 0.5 - len(names) / 2)
            canvas.write(_LEFT - 8, middle, name, size=9, ha="right")
        y += max(_ABOVE + _CELL, 10 * len(names) + 2)
    labels = [panel.columns[at] + "*" * (panel.columns[at] in panel.column_notes) for at in shown]
    for left, label in zip(lefts.values(), labels, strict=True):
        canvas.write(left + _STEP / 2, y + 5, label, size=8.5, ha="right", rotation=90)
    return y + 8 + 5.2 * max(map(len, labels))


def _broken(name: str) -> list[str]:
    """Break a name behind underscores, or anywhere if it has none, so that it fits next to the cells."""
    lines = [""]
    for part in re.findall(rf"[^_]{{1,{_NAME - 1}}}_?|_", name):
        if len(lines[-1] + part) > _NAME:
            lines.append("")
        lines[-1] += part
    return lines
