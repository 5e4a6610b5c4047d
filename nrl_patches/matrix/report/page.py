"""The matrix as one HTML file: the picture, and below it what was measured for every cell.

It needs no other file: no script, no font, no style sheet. It is well-formed XML too.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence

from nrl_patches.matrix.report.picture import STYLES, Panel, Tile, css_name

__all__ = ["page"]

_FAILING = ("obsolete", "uncovered", "ineffective", "error")


def page(
    panels: Sequence[Panel], *, caption: str, svg: bytes, declarations: Sequence[str], facts: Mapping[str, str]
) -> str:
    """Return the page.

    Args:
        panels: What the picture shows.
        caption: What was measured, when and where.
        svg: The picture.
        declarations: The verdict on each declaration, line by line.
        facts: What else the reader should know of the measurement, by name.
    """
    from jinja2 import Environment, PackageLoader  # noqa: PLC0415 - comes with the extra `matrix`
    from markupsafe import Markup  # noqa: PLC0415

    templates = Environment(loader=PackageLoader("nrl_patches.matrix", "report"), autoescape=True)
    return templates.get_template("page.html.jinja").render(
        panels=panels,
        caption=caption,
        # An HTML page has no place for the XML declaration.
        picture=Markup(svg[svg.index(b"<svg") :].decode()),  # noqa: S704 - of our own making
        declarations=declarations,
        facts=facts,
        styles=STYLES,
        failing=_FAILING,
        css_name=css_name,
        anchor=_anchor,
        summary=_summary,
        rows=_rows,
    )


def _anchor(panel: Panel, patch: str) -> str:
    """Return the id of a patch's section; a patch may have one in several panels."""
    return f"evidence-{panel.distribution}-{patch}".replace(" ", "-")


def _summary(panel: Panel, patch: str, cells: Sequence[Tile]) -> str:
    counts = collections.Counter(cell.verdict for cell in cells)
    parts = [f"{verdict} in {counts[verdict]}" for verdict in STYLES if counts[verdict]]
    sentence = f"Of {len(cells)} releases: {', '.join(parts)}."
    for text, changes in (("Begins in", panel.first_bad), ("Gone in", panel.first_good)):
        if labels := changes.get(patch):
            sentence += f" {text} {', '.join(labels)}."
    return sentence


def _rows(panel: Panel, patch: str, cells: Sequence[Tile]) -> Iterator[tuple[str, Tile]]:
    """Iterate over the rows of a patch's table: each release, and what is known of it."""
    for label, cell in zip(panel.columns, cells, strict=True):
        marks = [f"({panel.column_notes[label]})"] if label in panel.column_notes else []
        marks += ["▼"] if label in panel.first_bad.get(patch, ()) else []
        marks += ["△"] if label in panel.first_good.get(patch, ()) else []
        yield " ".join([label, *marks]), cell
