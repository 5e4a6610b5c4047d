"""Tripwires: each patch's probe, with and without the patch, in clean processes, and the verdict on both.

Used by the command, the pytest plugin and CI; never by ``import nrl_patches``.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from nrl_patches.defect import Defect
from nrl_patches.engine.affected import Answer, Decision
from nrl_patches.engine.decision import decide, is_recognised
from nrl_patches.engine.distributions import find_installed
from nrl_patches.tripwires.sides import TIMEOUT, Side, run_side

__all__ = [
    "PASSING",
    "Tripwire",
    "Verdict",
    "missing_for",
    "run_tripwire",
    "run_tripwires",
]


class Verdict(str, enum.Enum):
    """What a probe with and without its patch says about the declaration."""

    NEEDED = "needed"
    KNOWN = "known"
    NOT_AFFECTED = "not affected"
    NOT_INSTALLED = "not installed"
    OBSOLETE = "obsolete"
    UNCOVERED = "uncovered"
    INEFFECTIVE = "ineffective"
    ERROR = "error"

    __str__ = str.__str__


PASSING = frozenset({Verdict.NEEDED, Verdict.KNOWN, Verdict.NOT_AFFECTED, Verdict.NOT_INSTALLED})


@dataclass(frozen=True)
class Tripwire:
    """The outcome for one patch.

    Attributes:
        id: The patch.
        verdict: One word; see docs/tripwires.md.
        sentence: What was found, in which version.
        next_step: What to do now; empty if nothing.
        affected: The declared releases.
        installed: What is installed of each distribution that the declaration is about.
        upstream: The links of the patch.
        file: The patch file.
        off: The side without the patch; None if a distribution is not installed.
        on: The side with it; None where it has nothing to say.
    """

    id: str
    verdict: Verdict
    sentence: str
    next_step: str
    affected: str
    installed: Mapping[str, str]
    upstream: tuple[str, ...]
    file: str
    off: Side | None = None
    on: Side | None = None

    @property
    def seconds(self) -> float:
        """How long both sides took."""
        return sum(side.seconds for side in (self.off, self.on) if side is not None)


def run_tripwire(patch: Defect, *, timeout: float = TIMEOUT, off: Side | None = None) -> Tripwire:
    """Run the probe of a patch without it and, where that says anything, with it, and give the verdict.

    Args:
        patch: The patch; only its id is passed to the processes, which load it again.
        timeout: Seconds that one side may take before it is killed.
        off: The side without the patch, where it was run already.

    Returns:
        The outcome, with both sides as far as they were run.
    """
    decision = decide(patch)
    on: Side | None = None
    missing = missing_for(patch)
    if missing:
        verdict, sentence, step = Verdict.NOT_INSTALLED, f"{', '.join(missing)} is not installed", ""
        off = None
    else:
        off = off or run_side(patch.id, patched=False, timeout=timeout)
        # Between releases the guard decides whether the patch covers this build, and only the patched side knows.
        undecided, unmeasured = (decision.answer is answer for answer in (Answer.UNDECIDED, Answer.UNMEASURED))
        tried = bool(patch.fixes) and (undecided or unmeasured or decision.answer is Answer.YES)
        if tried and (off.present or (undecided and off.present is not None)):
            on = run_side(patch.id, patched=True, forced=unmeasured, timeout=timeout)
        guarded = on is not None and on.status == "applied" if patch.fixes else bool(off.present)
        covered = guarded if undecided else decision.answer is Answer.YES
        verdict, found, step = _verdict_on(patch, off, on, covered=covered)
        sentence = f"{found} ({decision.reason})"
        if verdict is not Verdict.ERROR and (unmeasured or is_recognised(decision)):
            step = _record(patch, decision, off, on)
    installed = {name: str(find_installed(name) or "not installed") for name in patch.affected.distributions}
    file = getattr(sys.modules.get(patch.module), "__file__", None) or patch.module
    declared = str(patch.affected)
    return Tripwire(patch.id, verdict, sentence, step, declared, installed, patch.upstream, file, off, on)


def missing_for(patch: Defect) -> list[str]:
    """Return what is not installed of what the probe of a patch needs; empty if nothing is missing.

    Args:
        patch: The patch.
    """
    # One excluded distribution decides a pair, but its probe needs both.
    complete = any(
        all(find_installed(part.distribution) for part in conjunction) for conjunction in patch.affected.alternatives
    )
    return [] if complete else [name for name in patch.affected.distributions if find_installed(name) is None]


def run_tripwires(
    patches: Iterable[Defect], *, timeout: float = TIMEOUT, done: Callable[[Tripwire], None] = lambda _: None
) -> list[Tripwire]:
    """Run the tripwires of several patches, one after the other, and report each when it is done.

    Args:
        patches: The patches.
        timeout: Seconds that one side may take before it is killed.
        done: Called with each outcome.

    Returns:
        The outcomes, in the order of the patches.
    """
    outcomes = []
    for patch in patches:
        outcomes.append(run_tripwire(patch, timeout=timeout))
        done(outcomes[-1])
    return outcomes


def _verdict_on(patch: Defect, off: Side, on: Side | None, *, covered: bool) -> tuple[Verdict, str, str]:
    for side, name in ((off, "without"), (on, "with")):
        if side is not None and side.present is None:
            return Verdict.ERROR, f"{name} the patch {side.error}", "run `nrl-patches probe` by hand; fix the probe"
    if not off.present:
        if not covered:
            return Verdict.NOT_AFFECTED, "the defect is not there and not declared", ""
        step = f"upstream fixed it: take this release out of `affected` ({patch.affected}), or delete the file"
        return Verdict.OBSOLETE, "declared as affected, but the defect is gone", step
    if not covered:
        step = f"widen `affected` ({patch.affected}) once the fix is proven there too"
        tried = "" if on is None else "; it stays with the fix" if on.present else "; it is gone with the fix"
        return Verdict.UNCOVERED, f"the defect is there, and no range covers it: {_shown(off)}{tried}", step
    return _verdict_on_repair(patch, off, on)


def _verdict_on_repair(patch: Defect, off: Side, on: Side | None) -> tuple[Verdict, str, str]:
    if not patch.fixes:
        return Verdict.KNOWN, f"the defect is there, and is not repaired here: {_shown(off)}", patch.advice
    if on is not None and on.present:
        step = f"report it to {patch.upstream[0]} or narrow `affected`"
        if on.status != "applied":
            step = f"`nrl-patches check {patch.id}` says more: {on.reason}"
        return Verdict.INEFFECTIVE, f"the defect stays with the patch ({on.status}): {_shown(on)}", step
    return Verdict.NEEDED, f"the defect is there without the patch and gone with it: {_shown(off)}", ""


def _record(patch: Defect, decision: Decision, off: Side, on: Side | None) -> str:
    """What to do about a release that nobody has measured, once it is measured here."""
    step = f"`nrl-patches matrix {patch.affected.distributions[0]}` records it, and prints the range to declare"
    if not off.present:
        applied = is_recognised(decision) and patch.fixes
        return f"{step}; NRL_PATCHES_DISABLE={patch.id} until then" if applied else step
    if on is not None and on.present:
        return f"{step}; the fix does not help there, so report it to {patch.upstream[0]}"
    if is_recognised(decision) or not patch.fixes:
        return step
    return f"{step}; NRL_PATCHES_FORCE={patch.id} applies the fix until then"


def _shown(side: Side) -> str:
    parts = (f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in side.evidence.items())
    return ", ".join(parts) or "the probe says no more"
