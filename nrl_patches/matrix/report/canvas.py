"""What the picture of the matrix is made of: cells, outlines, marks and text, drawn by Matplotlib.

Few and large objects, since an SVG holds some hundred bytes for each.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

if TYPE_CHECKING:
    from nrl_patches.matrix.report.picture import Style

__all__ = ["Canvas", "defaults", "saved"]

_CSS_DPI = 96
_POINT = 72 / _CSS_DPI


@contextlib.contextmanager
def defaults() -> Iterator[None]:
    """Draw and save the same whatever the user's matplotlibrc says."""
    ours = {
        "font.sans-serif": ["DejaVu Sans"],
        "hatch.linewidth": 0.6,
        "svg.fonttype": "none",
        "svg.hashsalt": "nrl-patches",
    }
    with matplotlib.style.context(["default", ours]):
        yield


def saved(figure: Figure, kind: str, **metadata: str | None) -> bytes:
    """Return a figure as a file of this kind, twice as fine as a screen if it has pixels.

    Args:
        figure: The figure.
        kind: A format of ``Figure.savefig``: ``svg`` or ``png``.
        metadata: Metadata of the file, as ``Figure.savefig`` takes them; None leaves one out.
    """
    file = io.BytesIO()
    with defaults():
        figure.savefig(file, format=kind, dpi=2 * _CSS_DPI, metadata=metadata)
    return file.getvalue()


class Canvas:
    """A white figure whose unit is the CSS pixel, and whose y grows downwards.

    Args:
        width: The width of the figure.
        cell: The width and the height of a cell.
    """

    def __init__(self, width: float, cell: tuple[float, float]) -> None:
        self.figure = Figure(facecolor="white")
        self._width = width
        self._cell_width, self._cell_height = cell
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()

    def finish(self, height: float) -> Figure:
        """Give the figure its height and return it.

        Args:
            height: In CSS pixels.

        Returns:
            The figure with everything that was drawn.
        """
        self.figure.set_size_inches(self._width / _CSS_DPI, height / _CSS_DPI)
        self._axes.set_xlim(0, self._width)
        self._axes.set_ylim(height, 0)
        return self.figure

    def write(self, x: float, y: float, text: str, *, size: float, **look: Any) -> None:
        """Write one line of text, by default to the right of (x, y) and in the middle of its height.

        Args:
            x: In CSS pixels from the left edge.
            y: In CSS pixels from the top edge.
            text: The line.
            size: The height of the font, in CSS pixels.
            look: Properties of Matplotlib's ``Text``.
        """
        look = {"va": "center_baseline"} | look
        # Ids and captions are not formulas.
        self._axes.text(x, y, text, fontsize=size * _POINT, parse_math=False, rotation_mode="anchor", **look)

    def cells(self, lefts: Sequence[float], top: float, style: Style, *, gid: str) -> None:
        """Draw cells of one verdict in one row.

        Args:
            lefts: The left edge of each cell, in CSS pixels.
            top: Their top edge, in CSS pixels.
            style: The look of the verdict.
            gid: The id of the group in the SVG.
        """
        if not lefts:
            return
        edge = {"linewidth": 0, "edgecolor": "black"} if style.letter else {"linewidth": 0.5, "edgecolor": "#999999"}
        width, height = self._cell_width - 2, self._cell_height
        self._fill(lefts, top, (width, height), facecolor=style.fill, hatch=style.hatch, gid=gid, **edge)
        if style.hatch:  # Keeps its lines off the letter.
            self._fill(lefts, top, (width, 11), facecolor=style.fill, linewidth=0)
        if style.letter:
            # A marker, not a text: a third of the bytes, and the same shape wherever it is shown.
            glyph = TextPath((0, 0), style.letter, size=10 * _POINT, prop=FontProperties(weight="bold"))
            letter = Path(glyph.vertices - glyph.get_extents().get_points().mean(axis=0), glyph.codes)
            size = 2 * np.abs(letter.vertices).max()  # Matplotlib scales the largest coordinate to a half.
            self._plot(lefts, top + height / 2, marker=letter, markersize=size, color=style.ink, markeredgewidth=0)

    def outline(
        self, left: float, right: float, top: float, *, gid: str, closed: tuple[bool, bool] = (True, True)
    ) -> None:
        """Draw a thick frame around neighbouring cells, open at the left or at the right where it is not closed.

        Args:
            left: The left edge of the first cell, in CSS pixels.
            right: The right edge of the last cell, in CSS pixels.
            top: Their top edge, in CSS pixels.
            gid: The id of the frame in the SVG.
            closed: Whether the left and the right end are drawn.
        """
        bottom = top + self._cell_height
        corners = [(right, top), (left, top), (left, bottom), (right, bottom), (right, top)]
        steps = [Path.LINETO if drawn else Path.MOVETO for drawn in (False, True, closed[0], True, closed[1])]
        path = Path(corners, steps) if closed[1] else Path(corners[:-1], steps[:-1])
        self._axes.add_patch(PathPatch(path, fill=False, linewidth=1.6, capstyle="projecting", clip_on=False, gid=gid))

    def marks(self, lefts: Sequence[float], y: float, *, good: bool, gid: str) -> None:
        """Draw triangles in the middle of columns: down and black where bad begins, up and white where good does.

        Args:
            lefts: The left edge of each column, in CSS pixels.
            y: The middle of the triangles, in CSS pixels from the top edge.
            good: Whether these are the first good releases, rather than the first bad ones.
            gid: The id of the group in the SVG.
        """
        look = {"marker": "^", "markerfacecolor": "white"} if good else {"marker": "v", "markerfacecolor": "black"}
        self._plot(lefts, y, markeredgecolor="black", markeredgewidth=0.7, markersize=4.5, gid=gid, **look)

    def _fill(self, lefts: Sequence[float], top: float, size: tuple[float, float], **look: Any) -> None:
        """Draw boxes, in the middles of the cells, as one object."""
        across, down = (self._cell_width - size[0]) / 2, (self._cell_height - size[1]) / 2
        box = Path.unit_rectangle().transformed(Affine2D().scale(*size).translate(across, top + down))
        boxes = [box.transformed(Affine2D().translate(left, 0)) for left in lefts]
        self._axes.add_patch(PathPatch(Path.make_compound_path(*boxes), clip_on=False, **look))

    def _plot(self, lefts: Sequence[float], y: float, **look: Any) -> None:
        """Put a marker in the middle of each column."""
        if lefts:
            xs = [left + self._cell_width / 2 for left in lefts]
            self._axes.plot(xs, [y] * len(xs), linestyle="", clip_on=False, **look)
