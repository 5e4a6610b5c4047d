"""The picture, drawn by the real Matplotlib and read back from its artists and its files."""

import io
import itertools
import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from nrl_patches.matrix.report.picture import STYLES, Panel, Tile, css_name, declared_runs, draw, to_png, to_svg
from nrl_patches.tripwires.run import Verdict

BAD = "transformers.gemma4_kv_sharing_needs_cache"
HOLE = "transformers.qwen_vl_checkpoint_mapping"
CAPTION = "Measured on 2026-01-02, at $HOME$ & <elsewhere>"


def releases(count):
    return tuple(
        f"5.{minor}.{micro}" for minor, micro in itertools.islice(itertools.product(range(99), range(3)), count)
    )


def row(count, declared=(), **verdicts):
    """Return cells that are needed where declared, except for those that are named, as c3="obsolete"."""
    usual = ["needed" if position in declared else "not affected" for position in range(count)]
    return tuple(
        Tile(verdicts.get(f"c{position}", usual[position]), position in declared, "logit_gap 1.25")
        for position in range(count)
    )


def panel(count=12):
    return Panel(
        "transformers",
        releases(count),
        {
            BAD: row(count, range(3, 6), c0="not measured", c4="error", c5="obsolete", c6="uncovered"),
            HOLE: row(count, {0, 1, 4, count - 1}, c1="ineffective"),
        },
        {"5.0.2": "yanked"},
        {BAD: ("5.1.0",)},
        {BAD: ("5.2.0", "5.2.1")},
    )


def full_size():
    """Return panels as large as the real ones, and livelier."""
    long, short = releases(60), tuple(f"0.{minor}.0 + 5.12.{minor}" for minor in range(16))
    colourful = {f"c{position}": verdict for position, verdict in enumerate([*STYLES] * 2)}
    return [
        Panel(
            "transformers",
            long,
            {f"transformers.gemma{n}_kv_sharing_needs_cache": row(60, range(n, 20 * n), **colourful) for n in range(6)},
        ),
        Panel("nemo-automodel", short, {f"nemo_automodel.a{n}": row(16, range(3, 9)) for n in range(2)}),
        Panel(
            "vllm", long, {f"vllm.dummy_load_constants_before_load_weights{n}": row(60, range(5, 60)) for n in range(3)}
        ),
    ]


def artists(figure, prefix):
    (axes,) = figure.axes
    return {a.get_gid(): a for a in [*axes.patches, *axes.lines] if (a.get_gid() or "").startswith(prefix)}


def cells(figure, patch):
    """Return the columns' extents (left, right) in the row of a patch, and its verdicts, from left to right."""
    found = [
        (box[:, 0].min(), box[:, 0].max(), verdict, box[:, 1].min())
        for verdict in STYLES
        for artist in artists(figure, f"{css_name(verdict)}-{patch}-").values()
        for box in artist.get_path().vertices.reshape(-1, 5, 2)
    ]
    return sorted(found, key=lambda cell: (cell[3], cell[0]))


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return linear(channels) @ (0.2126, 0.7152, 0.0722)


def linear(channels):
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def test_every_verdict_has_its_look():
    assert set(STYLES) == {str(verdict) for verdict in Verdict} - {"not installed"} | {"not measured"}
    assert len({style.letter for style in STYLES.values()}) == len(STYLES)
    assert len({style.fill for style in STYLES.values()}) == len(STYLES)


@pytest.mark.parametrize("verdict", STYLES)
def test_letters_can_be_read(verdict):
    style = STYLES[verdict]
    darker, lighter = sorted([luminance(style.fill), luminance(style.ink)])
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


# Machado, Oliveira and Fernandes 2009, at full severity; the last is brightness alone.
SIGHTS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "greyscale": [[0.2126, 0.7152, 0.0722]] * 3,
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_verdicts_differ_without_their_letters_for_every_sight(sight):
    seen = {}
    for verdict, style in STYLES.items():
        channels = np.array([int(style.fill[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        shown = np.clip(np.array(SIGHTS[sight]) @ linear(channels), 0, 1) ** (1 / 2.2)
        seen[verdict] = shown, style.hatch
    del seen["not measured"]  # Has a frame and no letter.
    for (one, (colour, hatch)), (two, (other, other_hatch)) in itertools.combinations(seen.items(), 2):
        assert np.abs(colour - other).max() > 0.1 or hatch != other_hatch, (one, two)


@pytest.mark.parametrize(
    ("declared", "runs"),
    [((), []), ({0}, [(0, 0)]), ({0, 1, 4, 11}, [(0, 1), (4, 4), (11, 11)]), (range(12), [(0, 11)])],
)
def test_declared_runs(declared, runs):
    assert declared_runs(row(12, declared)) == runs


def test_cells_stand_in_the_order_of_the_releases():
    shown = panel()
    figure = draw([shown], caption=CAPTION)
    for patch in shown.rows:
        assert [verdict for _, _, verdict, _ in cells(figure, patch)] == [cell.verdict for cell in shown.rows[patch]]
    assert not artists(figure, f"obsolete-{HOLE}")


@pytest.mark.parametrize("count", [12, 61, 130])
def test_outlines_enclose_the_declared_cells_and_no_other(count):
    shown = panel(count)
    figure = draw([shown], caption=CAPTION)
    for patch, expected in shown.rows.items():
        frames = [frame.get_path().get_extents() for frame in artists(figure, f"declared-{patch}-").values()]
        enclosed = [
            any(f.x0 <= left and right <= f.x1 and f.y0 <= top < f.y1 for f in frames)
            for left, right, _, top in cells(figure, patch)
        ]
        assert enclosed == [cell.declared for cell in expected]


def test_an_outline_that_goes_on_in_the_next_line_is_open_there():
    figure = draw([Panel("vllm", releases(80), {"vllm.x": row(80, range(30, 50))})], caption="")
    (_, first), (_, second) = artists(figure, "declared-").items()
    assert (first.get_gid(), second.get_gid()) == ("declared-vllm.x-30-39", "declared-vllm.x-40-49")

    def sides(frame):
        """Return the x of each vertical line that is drawn."""
        path = frame.get_path()
        steps = zip(path.vertices, path.vertices[1:], path.codes[1:], strict=False)
        return {a[0] for a, b, code in steps if code == path.LINETO and a[0] == b[0]}

    assert sides(first) == {first.get_path().get_extents().x0}
    assert sides(second) == {second.get_path().get_extents().x1}


def test_marks_stand_above_the_cells_where_the_state_changes():
    figure = draw([panel()], caption=CAPTION)
    columns = [((left + right) / 2, top) for left, right, _, top in cells(figure, BAD)]
    for kind, positions in (("bad", [3]), ("good", [6, 7])):
        (marks,) = artists(figure, f"first-{kind}-").values()
        assert list(marks.get_xdata()) == pytest.approx([columns[position][0] for position in positions])
        assert all(0 < columns[0][1] - y < 12 for y in marks.get_ydata())
    assert artists(figure, "legend-first-bad")["legend-first-bad"].get_marker() == "v"
    assert artists(figure, "legend-first-good")["legend-first-good"].get_marker() == "^"


@pytest.mark.parametrize("count", [12, 61])
def test_every_release_and_patch_is_named(count):
    figure = draw([panel(count)], caption=CAPTION)
    shown = texts(figure)
    assert [text.rstrip("*") for text in shown if re.fullmatch(r"5\.\d+\.\d\*?", text)] == list(releases(count))
    assert "5.0.2*" in shown
    assert "* 5.0.2: yanked" in shown
    assert "gemma4_kv_sharing_needs_cache" in "".join(shown)
    assert all(any(text.startswith(verdict) for text in shown) for verdict in STYLES)


def test_no_text_is_cut_or_runs_into_another_or_into_the_cells():
    shown = Panel(
        "third",
        releases(60),
        {f"third.{'extraordinarily' * 5}": row(60), "third.a_b": row(60)},
        {"5.1.0": "yanked " * 40},
    )
    figure = draw([*full_size(), shown], caption="a long caption " * 30)
    renderer = FigureCanvasAgg(figure).get_renderer()
    extents = {text: text.get_window_extent(renderer) for text in figure.axes[0].texts}
    for one, two in itertools.combinations(extents.values(), 2):
        assert not one.padded(-1).overlaps(two.padded(-1))  # Lines of a name touch.
    for text, extent in extents.items():
        assert figure.bbox.x0 <= extent.x0 < extent.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= extent.y0 < extent.y1 <= figure.bbox.y1, text
        if text.get_horizontalalignment() == "right" and not text.get_rotation():
            assert extent.x1 < figure.axes[0].transData.transform((cells(figure, "third.a_b")[0][0], 0))[0], text


def test_same_bytes_whatever_the_users_settings():
    figure = draw([panel()], caption=CAPTION)
    with mpl.rc_context({"font.size": 30, "font.family": "monospace", "svg.hashsalt": None, "axes.facecolor": "red"}):
        again = draw([panel()], caption=CAPTION)
        assert (to_svg(again), to_png(again)) == (to_svg(figure), to_png(figure))


def test_files_are_small():
    figure = draw(full_size(), caption=CAPTION)
    assert len(to_svg(figure)) < 150_000
    png = to_png(figure)
    assert len(png) < 150_000
    assert Image.open(io.BytesIO(png)).width == 1800


def test_svg_refers_to_nothing_elsewhere():
    svg = to_svg(draw([panel()], caption=CAPTION)).decode()
    assert "<metadata" not in svg
    assert not re.search(r"https?:|file:|<!DOCTYPE|@import", re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg))
    assert set(re.findall(r'href="(.)|url\((.)', svg)) == {("#", ""), ("", "#")}
    drawn = list(ET.fromstring(svg).itertext())
    assert CAPTION in drawn
    assert "2026" not in "".join(text for text in drawn if text != CAPTION)


def test_ids_are_unique_and_without_spaces():
    svg = to_svg(draw([panel(61)], caption=CAPTION)).decode()
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert not [name for name in ids if " " in name]


def test_nothing_to_show():
    assert to_svg(draw([], caption=""))
    assert to_png(draw([Panel("vllm", (), {"vllm.x": ()})], caption=""))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"one of needed, .*, not 'splendid'"):
        Tile("splendid", declared=False, note="")
    with pytest.raises(ValueError, match=r"vllm\.x has 2 cells for 3 releases"):
        Panel("vllm", releases(3), {"vllm.x": row(2)})
    with pytest.raises(ValueError, match=r"vllm has no column for 7\.0"):
        Panel("vllm", releases(3), {"vllm.x": row(3)}, first_bad={"vllm.x": ("7.0",)})
