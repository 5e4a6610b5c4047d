"""The picture of the ranges: what is drawn, and that a fix and the end of what is known look different."""

from collections import Counter
from xml.etree import ElementTree as ET

import pytest

from nrl_patches import Patch
from nrl_patches.engine.registry import load
from nrl_patches.matrix.evidence import COMMITTED, Cell, Evidence, Measurement
from nrl_patches.matrix.report.ranges import Bar, axes, to_ranges_svg

EVIDENCE = Evidence.read(COMMITTED)
SVG = "{http://www.w3.org/2000/svg}"


def patch(patch_id, affected, **fields):
    return Patch(
        patch_id, affected=affected, upstream=("https://example.org/1",), opt_out="NRL_DISABLE_COUNT", **fields
    )


def evidence(*versions, **more):
    cells = {"standin.count": Cell("needed", declared=True, code="", present=True, date="2026-11-21")}
    measurements = {f"standin=={v}": Measurement("2026-11-21", {}, cells) for v in versions}
    return Evidence(measurements, {"standin": dict.fromkeys(versions, "") | more})


def classes(svg):
    return Counter(element.get("class") for element in ET.fromstring(svg).iter())


@pytest.mark.parametrize(
    ("affected", "bars"),
    [
        ("standin>=1.1,<1.3", (Bar(1, 2, "gone in 1.3"),)),
        ("standin>=1.1,<=1.4", (Bar(1, 4, ""),)),
        (("standin>=1.0,<1.1", "standin>=1.3,<=1.4"), (Bar(0, 0, "gone in 1.1"), Bar(3, 4, ""))),
        ("standin>=1.0,<1.4 & other>=1,<2", (Bar(0, 3, "gone in 1.4"),)),
    ],
)
def test_a_bar_has_the_releases_that_are_declared_and_an_end_if_a_fix_ended_it(affected, bars):
    (axis,) = axes([patch("standin.count", affected)], evidence("1.0", "1.1", "1.2", "1.3", "1.4"))
    (line,) = axis.lines
    assert line.bars == bars
    assert bool(line.note) is ("&" in str(affected))
    found = classes(to_ranges_svg([axis], caption=""))
    plain = classes(to_ranges_svg([], caption=""))
    assert found["bar"] - plain["bar"] == len(bars)
    assert found["closed"] - plain["closed"] == sum(bool(bar.end) for bar in bars)
    assert found["unknown"] - plain["unknown"] == sum(not bar.end for bar in bars)


def test_what_was_yanked_or_never_measured_has_no_place_on_the_axis():
    (axis,) = axes([patch("standin.count", "standin<2")], evidence("1.0", "1.1", "1.2", **{"1.1": "yanked"}))
    assert list(map(str, axis.releases)) == ["1.0", "1.2"]


def test_who_meets_a_defect_stands_below_the_mechanism():
    victims = {"Gemma": "standin>=1.0,<1.1"}
    patches = [
        patch("standin.late", "standin>=1.1,<=1.2"),
        patch("standin.count", "standin>=1.0,<=1.2", victims=victims),
    ]
    (axis,) = axes(patches, evidence("1.0", "1.1", "1.2"))
    assert [(line.name, line.thin) for line in axis.lines] == [("count", False), ("Gemma", True), ("late", False)]
    assert axis.lines[1].bars == (Bar(0, 0, "gone in 1.1"),)


def test_the_committed_picture_is_that_of_the_committed_evidence_and_stays_inside():
    committed = (COMMITTED.parent / "ranges.svg").read_text(encoding="utf-8")
    root = ET.fromstring(committed)
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    drawn = axes(load(), EVIDENCE)
    names = [line.name for axis in drawn for line in axis.lines]
    assert set(names) <= set(texts)
    caption = next(text for text in texts if text.startswith("Measured "))
    assert committed == to_ranges_svg(drawn, caption=caption)
    assert max(map(len, names)) * 6.4 < 348
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= 900
    assert "prefers-color-scheme: dark" in committed
    assert "href" not in committed
