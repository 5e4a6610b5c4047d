"""The page, which is well-formed XML too and is read as such."""

import re
from xml.etree import ElementTree as ET

import pytest

from nrl_patches.matrix.report.page import page
from nrl_patches.matrix.report.picture import STYLES, Panel, Tile, draw, to_svg

NASTY = "<script>alert('&\"')</script>"
RELEASES = ("5.4.0", "5.5.0", "5.5.1", "5.5.2", "5.6.0", "5.7.0", "5.8.0", "5.9.0")
PAIRS = ("0.4.0 + 5.5.4", "0.6.0 + 5.12.1")


def panels():
    every = tuple(
        Tile(verdict, verdict in {"needed", "obsolete", "ineffective"}, f"gap {n}\n{NASTY}")
        for n, verdict in enumerate(STYLES)
    )
    return [
        Panel(
            "transformers",
            RELEASES,
            {"transformers.gemma4_kv_sharing": every, "transformers.qwen_vl": every[::-1]},
            {"5.6.0": f"yanked: {NASTY}"},
            {"transformers.qwen_vl": ("5.5.1",)},
            {"transformers.qwen_vl": ("5.8.0",)},
        ),
        Panel(f"nemo-automodel {NASTY}", PAIRS, {"nemo_automodel.dtype_restore": every[:2]}),
    ]


@pytest.fixture(scope="module")
def text():
    shown = panels()
    svg = to_svg(draw(shown, caption=f"Measured {NASTY}"))
    return page(
        shown,
        caption=f"Measured {NASTY}",
        svg=svg,
        declarations=[f"transformers.qwen_vl: exact {NASTY}"],
        facts={f"torch {NASTY}": f"2.13.0 {NASTY}"},
    )


@pytest.fixture(scope="module")
def body(text):
    """The page without its document type, as XML that must be well-formed."""
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>\n")).find("body")


def section(body, patch):
    """Return the table that follows the heading of a patch."""
    children = list(body)
    (heading,) = (position for position, child in enumerate(children) if child.tag == "h3" and child.text == patch)
    return children[heading + 1]


def plain(element):
    return "".join(element.itertext())


def test_every_patch_has_a_table_of_every_release_with_its_evidence(body):
    for panel in panels():
        for patch, cells in panel.rows.items():
            table = section(body, patch)
            assert [th.text for th in table.findall("thead/tr/th")] == ["release", "verdict", "declared", "evidence"]
            assert {th.get("scope") for th in table.findall("thead/tr/th")} == {"col"}
            rows = table.findall("tbody/tr")
            assert [row.find("th").get("scope") for row in rows] == ["row"] * len(cells)
            for row, label, cell in zip(rows, panel.columns, cells, strict=True):
                verdict, declared, note = row.findall("td")
                assert row.find("th").text.startswith(label)
                assert plain(verdict) == STYLES[cell.verdict].letter + cell.verdict
                assert plain(declared) == ("declared" if cell.declared else "")
                assert plain(note) == cell.note


def test_notes_and_marks_stand_with_their_release(body):
    releases = [plain(row.find("th")) for row in section(body, "transformers.qwen_vl").findall("tbody/tr")]
    assert releases[2:] == ["5.5.1 ▼", "5.5.2", f"5.6.0 (yanked: {NASTY})", "5.7.0", "5.8.0 △", "5.9.0"]
    caption = plain(section(body, "transformers.qwen_vl").find("caption"))
    assert caption.startswith("Of 8 releases: needed in 1, known in 1, not affected in 1, obsolete in 1")
    assert caption.endswith("Begins in 5.5.1. Gone in 5.8.0.")


def test_failing_verdicts_stand_out(body):
    badges = {plain(badge): badge.get("class") for badge in section(body, "transformers.qwen_vl").iter("span")}
    failing = {name[1:] for name, kind in badges.items() if "failing" in kind.split()}
    assert failing == {"obsolete", "uncovered", "ineffective", "error"}


def test_every_verdict_has_its_colour_and_its_meaning(text, body):
    for verdict, style in STYLES.items():
        assert f".{verdict.replace(' ', '-')} {{ background: {style.fill}; color: {style.ink}; }}" in text
        assert any(style.meaning in plain(row) for row in body.iter("tr"))


def test_declarations_and_facts(body):
    assert f"transformers.qwen_vl: exact {NASTY}" in [plain(item) for item in body.iter("li")]
    assert [f"torch {NASTY}", f"2.13.0 {NASTY}"] in [[plain(cell) for cell in row] for row in body.iter("tr")]


def test_what_others_wrote_is_text_and_never_markup(text, body):
    assert "<script" not in text
    assert not list(body.iter("script"))


def test_it_needs_nothing_from_elsewhere(text):
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"//|<link|<img|<iframe|<object|@import|\bsrc=|<\?xml", without_names)
    assert set(re.findall(r'href="(.)', text)) == {"#"}


def test_links_lead_to_sections_and_ids_are_unique(text, body):
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    links = [link.get("href").removeprefix("#") for link in body.findall("nav//a")]
    headings = [heading.get("id") for heading in body.findall("h3")]
    assert links == headings
    assert len(links) == 3


def test_a_patch_in_two_panels_has_two_sections():
    cells = (Tile("needed", declared=True, note=""),)
    shown = [Panel(name, ("1.0",), {"both.x": cells}) for name in ("one", "two")]
    text = page(shown, caption="", svg=b"<svg/>", declarations=(), facts={})
    assert re.findall(r'<h3 id="([^"]*)"', text) == ["evidence-one-both.x", "evidence-two-both.x"]


def test_dark_screens_and_paper_are_provided_for(text):
    assert "@media (prefers-color-scheme: dark)" in text
    assert "size: A4 landscape" in text
    assert "print-color-adjust: exact" in text
