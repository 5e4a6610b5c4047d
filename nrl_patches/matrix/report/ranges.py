"""The ranges as a picture that is understood at a glance: one bar per defect, one axis per distribution.

A bar that a fix ended has a closed end; one that ends only with the newest measured release goes on, dashed, into what
nobody knows. Colours follow the reader's light or dark mode. Needs Jinja2, which the extra ``matrix`` brings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.engine.affected import Affected
from nrl_patches.matrix.evidence import Evidence
from nrl_patches.matrix.freshness import measured_releases
from nrl_patches.matrix.plan import axis
from nrl_patches.matrix.report.picture import short_id

__all__ = ["Axis", "Bar", "Line", "axes", "to_ranges_svg"]

# Lengths are CSS pixels: the picture is as wide as the text column of a README.
_WIDTH = 900
_LEFT = 348
_BEYOND = 74  # Behind the newest release.
_LINE, _THIN = 21, 16
_MOST_LABELS = 12
_ROOM = 90  # Of what ended a bar.
_NARROWEST = 30  # Between two labels.


@dataclass(frozen=True)
class Bar:
    """A stretch of releases with the defect.

    Attributes:
        first: The position of the first release.
        last: That of the last one.
        end: What ended it, for people; empty if nothing did.
    """

    first: int
    last: int
    end: str


@dataclass(frozen=True)
class Line:
    """What is drawn beside one name.

    Attributes:
        name: The patch without its distribution, or who meets the defect.
        bars: The stretches, oldest first.
        note: What else limits the range: the other distribution of a pair.
        thin: Whether it is about those who meet the defect of the line above.
    """

    name: str
    bars: tuple[Bar, ...]
    note: str = ""
    thin: bool = False


@dataclass(frozen=True)
class Axis:
    """The releases of one distribution, and the lines along them.

    Attributes:
        distribution: Its name.
        releases: Those that were measured, oldest first; the last one is where knowledge ends.
        lines: What is drawn.
    """

    distribution: str
    releases: Sequence[Version]
    lines: Sequence[Line] = field(default_factory=tuple)


def axes(patches: Iterable[Defect], evidence: Evidence) -> list[Axis]:
    """Return what is drawn, by distribution and by the releases in which the defects begin.

    Args:
        patches: The patches.
        evidence: All measurements.
    """
    by_axis: dict[str, list[Defect]] = {}
    for patch in patches:
        by_axis.setdefault(axis(patch), []).append(patch)
    measured = measured_releases(evidence)
    found = []
    for name, here in sorted(by_axis.items()):
        finals = evidence.finals(name)
        releases = [version for version in measured.get(name, ()) if version in finals]
        lines = [line for patch in here for line in _lines(patch, name, releases)]
        groups: list[list[Line]] = []
        for line in lines:  # Who meets a defect stays below it.
            groups[-1].append(line) if line.thin else groups.append([line])
        groups.sort(key=lambda group: (group[0].bars[0].first if group[0].bars else 0, group[0].name))
        found.append(Axis(name, releases, [line for group in groups for line in group]))
    return found


def to_ranges_svg(drawn: Sequence[Axis], *, caption: str) -> str:
    """Return the picture.

    Args:
        drawn: What :func:`axes` returned.
        caption: What was measured, and when.
    """
    import jinja2  # noqa: PLC0415 - an extra

    template = resources.files(__package__).joinpath("ranges.svg.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    y = 74.0
    shown = []
    for one in drawn:
        placed = _placed(one, y)
        y = placed["bottom"] + 26
        shown.append(placed)
    text = environment.from_string(template).render(width=_WIDTH, height=y, left=_LEFT, axes=shown, caption=caption)
    return re.sub(r'(?<=\d)\.0"', '"', text) + "\n"


def _lines(patch: Defect, name: str, releases: Sequence[Version]) -> Iterator[Line]:
    others = [
        f"{p.distribution} {p.releases}" for c in patch.affected.alternatives for p in c if p.distribution != name
    ]
    yield Line(short_id(patch.id), tuple(_bars(patch.affected, name, releases)), ", ".join(dict.fromkeys(others)))
    for victim, declared in patch.victims.items():
        yield Line(victim, tuple(_bars(Affected(declared), name, releases)), thin=True)


def _bars(affected: Affected, name: str, releases: Sequence[Version]) -> Iterator[Bar]:
    newest = affected.newest_measured(name)
    for part in (part for conjunction in affected.alternatives for part in conjunction):
        inside = [n for n, version in enumerate(releases) if part.releases.contains(version)]
        if part.distribution == name and inside:
            fixed = part.end is not None and not (part.end[1] and part.end[0] == newest)
            yield Bar(inside[0], inside[-1], f"gone in {part.end[0]}" if fixed and part.end else "")


def _placed(one: Axis, y: float) -> dict[str, Any]:
    step = (_WIDTH - _LEFT - _BEYOND) / max(len(one.releases), 1)
    lines = []
    top = y
    for line in one.lines:
        height = _THIN if line.thin else _LINE
        bars = [
            {
                "x": _LEFT + step * bar.first,
                "width": step * (bar.last - bar.first + 1),
                "end": bar.end,
                "span": _span(one.releases, bar),
                "roomy": step * (len(one.releases) - bar.last - 1) > _ROOM,
            }
            for bar in line.bars
        ]
        lines.append({"name": line.name, "note": line.note, "thin": line.thin, "y": y, "height": height, "bars": bars})
        y += height
    return {
        "name": one.distribution,
        "newest": str(one.releases[-1]) if one.releases else "",
        "edge": _LEFT + step * len(one.releases),
        "beyond": _BEYOND,
        "top": top,
        "bottom": y + 18,
        "lines": lines,
        "labels": [{"x": _LEFT + step * n, "text": text} for n, text in _labels(one.releases, step).items()],
    }


def _span(releases: Sequence[Version], bar: Bar) -> str:
    return " to ".join(dict.fromkeys([str(releases[bar.first]), str(releases[bar.last])]))


def _labels(releases: Sequence[Version], step: float) -> Mapping[int, str]:
    """Where the axis is labelled: the first releases of minor versions, as many as can be read."""
    minors: dict[tuple[int, ...], int] = {}
    for position, version in enumerate(releases):
        minors.setdefault(version.release[:2], position)
    places = list(minors.values())
    every = max(1, -(-len(places) // _MOST_LABELS))
    labels: dict[int, str] = {}
    for place in places[::every]:
        if not labels or step * (place - max(labels)) >= _NARROWEST:
            labels[place] = ".".join(map(str, releases[place].release[:2]))
    return labels
