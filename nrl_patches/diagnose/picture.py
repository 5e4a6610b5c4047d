"""The picture: the error along the sequences, with the patches off and on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nrl_patches.diagnose.agreement import Agreement

__all__ = ["draw"]

_LEAST = 1e-8
"""What is no error at all has no place on a logarithmic axis."""

_COLORS = ("#b2182b", "#2166ac", "#777777", "#1b7837", "#762a83", "#e08214")


def draw(rows: Sequence[Agreement], threshold: float, file: Path) -> bool:
    """Draw the error by position, a panel for each length.

    Args:
        rows: The table of agreement.
        threshold: Of the error; a line is drawn there.
        file: Where the picture is written; its ending says in which format.

    Returns:
        Whether there was anything to draw.
    """
    measured = [row for row in rows if row.positions]
    if not measured:
        return False
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the extra

    lengths = sorted({row.row.length for row in measured})
    states = list(dict.fromkeys(row.state for row in measured))
    figure = Figure(figsize=(9, 1 + 2.4 * len(lengths)), layout="constrained")
    panels = figure.subplots(len(lengths), 1, squeeze=False)[:, 0]
    for panel, length in zip(panels, lengths, strict=True):
        for number, (state, color) in enumerate(zip(states, _COLORS * len(states), strict=False)):
            name = f"patches {state}"
            style = "--" if number else "-"  # Lines that coincide are to be seen.
            for row in (row for row in measured if (row.row.length, row.state) == (length, state)):
                places = [at for at, _ in row.positions]
                errors = [math.nan if error is None else max(error - 1, _LEAST) for _, error in row.positions]
                panel.plot(places, errors, color=color, linestyle=style, linewidth=0.9, alpha=0.7, label=name)
                lost = [at for at, error in row.positions if error is None]
                panel.plot(lost, [1.0] * len(lost), "x", color=color)
                name = "_"  # One entry of the legend for all rows.
        panel.axhline(threshold - 1, color="black", linewidth=0.7, linestyle=":")
        panel.set(title=f"sequences of {length:,} tokens", ylabel="error less 1", yscale="log")
    panels[-1].set_xlabel("sampled token; a line for each row of the table, crosses for NaN, the threshold dotted")
    panels[0].legend(loc="upper right")
    figure.savefig(file)
    return True
