"""The matrix as one HTML file: the picture, and below it what was measured for every cell.

It needs nothing beside itself: no script, no font, no style sheet. It is well-formed XML too.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from nrl_patches.matrix.report.picture import STYLES, Cell, Panel, css_name

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; }
body { color: #111; background: #fff; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #999; }
figure { margin: 1rem 0; padding: .5rem; background: #fff; }
figure svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; }
caption { text-align: left; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .1rem .9rem .1rem 0; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 1px solid #777; }
th[scope=row] { font-weight: normal; white-space: nowrap; }
td { overflow-wrap: anywhere; white-space: pre-wrap; }
.verdict { display: inline-block; white-space: nowrap; padding: 0 .5em; border: 1px solid #777; border-radius: 3px; }
.letter { display: inline-block; width: 1.1em; font-weight: bold; }
.failing { font-weight: bold; border: 2px solid currentcolor; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #16181b; }
  a { color: #8cf; }
  th, td { border-color: #444; }
}
@media print {
  @page { size: A4 landscape; margin: 10mm; }
  body { font-size: 9pt; margin: 0; max-width: none; padding: 0; color: #000; background: #fff; }
  a { color: inherit; text-decoration: none; }
  nav { display: none; }
  figure { margin: 0; padding: 0; break-inside: avoid; }
  figure svg { max-height: 174mm; }
  h1 { font-size: 12pt; margin: 0; }
  h2, h3, caption { break-after: avoid; }
  tr { break-inside: avoid; }
  .verdict { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

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
    # An HTML page has no place for the XML declaration.
    picture = svg[svg.index(b"<svg") :].decode()
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>nrl-patches matrix: {escape(caption)}</title>\n<style>{_STYLE}{_colours()}</style>\n</head>\n<body>",
        f"<h1>Which releases need which patch</h1>\n<figure>\n{picture}</figure>",
        "<h2>Declarations</h2>\n<ul>",
        *(f"<li>{escape(line)}</li>" for line in declarations),
        "</ul>\n<h2>Measurement</h2>",
        *_table("", (), ((name, escape(value)) for name, value in facts.items())),
        "<h2>Legend</h2>",
        *_table("", (), _legend()),
        *_contents(panels),
    ]
    for panel in panels:
        parts.append(f"<h2>{escape(panel.distribution)}</h2>")
        for patch, cells in panel.rows.items():
            parts.append(f'<h3 id="{_anchor(panel, patch)}">{escape(patch)}</h3>')
            head = ("release", "verdict", "declared", "evidence")
            parts += _table(_summary(panel, patch, cells), head, _evidence(panel, patch, cells))
    return "\n".join([*parts, "</body>\n</html>\n"])


def _colours() -> str:
    return "".join(
        f".{css_name(verdict)} {{ background: {style.fill}; color: {style.ink}; }}\n"
        for verdict, style in STYLES.items()
    )


def _contents(panels: Sequence[Panel]) -> Iterator[str]:
    yield "<nav>\n<h2>Patches</h2>\n<ul>"
    for panel in panels:
        for patch in panel.rows:
            yield f'<li><a href="#{_anchor(panel, patch)}">{escape(patch)}</a></li>'
    yield "</ul>\n</nav>"


def _anchor(panel: Panel, patch: str) -> str:
    """Return the id of a patch's section; a patch may have one in several panels."""
    return escape(f"evidence-{panel.distribution}-{patch}".replace(" ", "-"))


def _legend() -> Iterator[tuple[str, str]]:
    """Return the rows of the legend: what is shown, and what it means."""
    for verdict, style in STYLES.items():
        yield verdict, f"{_badge(verdict, '')} {escape(style.meaning)}"
    yield "declared", "a thick frame: the patch declares the release as affected"
    yield "first bad", "▼ the defect begins here"
    yield "first good", "△ the defect is gone from here on"


def _summary(panel: Panel, patch: str, cells: Sequence[Cell]) -> str:
    counts = collections.Counter(cell.verdict for cell in cells)
    parts = [f"{verdict} in {counts[verdict]}" for verdict in STYLES if counts[verdict]]
    sentence = f"Of {len(cells)} releases: {', '.join(parts)}."
    for text, changes in (("Begins in", panel.first_bad), ("Gone in", panel.first_good)):
        if labels := changes.get(patch):
            sentence += f" {text} {', '.join(labels)}."
    return escape(sentence)


def _evidence(panel: Panel, patch: str, cells: Sequence[Cell]) -> Iterator[tuple[str, str, str, str]]:
    """Return the rows of a patch's table: each release and what is known of it."""
    for label, cell in zip(panel.columns, cells, strict=True):
        marks = [f"({panel.column_notes[label]})"] if label in panel.column_notes else []
        marks += ["▼"] if label in panel.first_bad.get(patch, ()) else []
        marks += ["△"] if label in panel.first_good.get(patch, ()) else []
        release = " ".join([label, *marks])
        yield release, _badge(cell.verdict, cell.verdict), "declared" if cell.declared else "", escape(cell.note)


def _badge(verdict: str, text: str) -> str:
    kind = css_name(verdict) + " failing" * (verdict in _FAILING)
    return f'<span class="verdict {kind}"><span class="letter">{STYLES[verdict].letter}</span>{escape(text)}</span>'


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table.

    Args:
        caption: HTML above it; empty for none.
        head: The plain text of the column headers; none where the row headers say enough.
        rows: Of each, the plain text of its header, and the HTML of its cells.
    """
    yield "<table>"
    if caption:
        yield f"<caption>{caption}</caption>"
    if head:
        columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
        yield f"<thead><tr>{columns}</tr></thead>"
    yield "<tbody>"
    for name, *cells in rows:
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        yield f'<tr><th scope="row">{escape(name)}</th>{columns}</tr>'
    yield "</tbody>\n</table>"
