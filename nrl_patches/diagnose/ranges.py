"""Numbers as ranges: ``0-2,5``."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["fold"]


def fold(numbers: Iterable[int]) -> str:
    """Return numbers with their runs folded, such as ``0-2,5``.

    Args:
        numbers: The numbers, in any order.
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
