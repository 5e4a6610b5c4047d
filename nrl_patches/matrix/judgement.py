"""What the evidence says of one declaration, for people and for pasting."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.matrix.plan import axis

__all__ = ["Judgement", "Run"]

_SHORT = 3


@dataclass(frozen=True)
class Run:
    """Consecutive releases that have the defect.

    Attributes:
        bad: They, oldest first.
        good: The first release after them that does not have it; None if none was measured.
    """

    bad: tuple[Version, ...]
    good: Version | None

    def __str__(self) -> str:
        """Return the run for people: "seen in 5.5.0, 5.5.1; gone in 5.5.2", or that it is still there."""
        few = len(self.bad) <= _SHORT
        seen = ", ".join(map(str, self.bad)) if few else f"{self.bad[0]} to {self.bad[-1]} ({len(self.bad)} releases)"
        return (
            f"seen in {seen}; {f'gone in {self.good}' if self.good else 'still there in the newest that was measured'}"
        )


@dataclass(frozen=True)
class Judgement:
    """What the evidence says of one declaration.

    Attributes:
        patch: The patch.
        runs: Where the defect was seen along the patch's axis.
        objections: What keeps the declaration from being exact, one sentence each; empty if nothing does.
        suggestion: The requirement that the evidence supports, as ``affected`` takes it; empty if there is none.
        remarks: What else a reader should know: releases that could not be measured, and why.
        dates: The days of the oldest and the newest measurement.
        unmeasured: Those of the objections that measuring could answer; until then there is nothing to paste.
    """

    patch: Defect
    runs: tuple[Run, ...]
    objections: tuple[str, ...]
    suggestion: tuple[str, ...]
    remarks: tuple[str, ...]
    dates: tuple[str, ...]
    unmeasured: tuple[str, ...]

    @property
    def seen(self) -> str:
        """Where the defect was seen, and when that was measured, in a line."""
        if not self.dates:
            return "no release measured"
        runs = "; ".join(map(str, self.runs)) or "seen nowhere"
        return f"{runs}; measured {' to '.join(dict.fromkeys(self.dates))}"

    def lines(self) -> list[str]:
        """Return the verdict for people: one line if the declaration is exact, otherwise what to do.

        ``OPEN`` is neither ``exact`` nor ``WRONG``: nothing speaks against it, but not all that matters was measured.
        """
        word = "exact" if not self.objections else "OPEN" if self.unmeasured == self.objections else "WRONG"
        head = f"{word}: {self.patch.id}: {self.patch.affected}: {self.seen}"
        lines = [head, *(f"    {line}" for line in (*self.objections, *self.remarks))]
        return [*lines, f"    {self.advice}"] if self.objections else lines

    @property
    def advice(self) -> str:
        """What to do about the objections."""
        if self.unmeasured:
            return (
                f"measure that first, with --releases or, where it was tried, --again errors: `nrl-patches matrix "
                f"{axis(self.patch)}`; what cannot be measured belongs into KNOWN_GAPS, with the reason"
            )
        if not self.suggestion:
            return "nothing to paste: no product of ranges fits; see the page"
        shown = self.suggestion[0] if len(self.suggestion) == 1 else self.suggestion
        return f"paste: affected={shown!r}".replace("'", '"')
