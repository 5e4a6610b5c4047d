"""Which known defects hit an environment, by what was measured, and which of them are repaired there."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.version import Version

from nrl_patches.audit.pins import Pins
from nrl_patches.defect import Defect
from nrl_patches.engine.affected import Answer, Decision
from nrl_patches.engine.decision import decide, is_recognised
from nrl_patches.engine.distributions import import_package
from nrl_patches.matrix.evidence import Cell, Evidence
from nrl_patches.matrix.names import name_environment
from nrl_patches.tripwires.run import Verdict

__all__ = ["Hit", "Repair", "Row", "answer", "environment_of", "needs_attention"]


class Hit(str, enum.Enum):
    """Whether a defect hits an environment."""

    YES = "hit"
    NO = "not hit"
    UNMEASURED = "unmeasured"
    ABSENT = "not in the pins"

    __str__ = str.__str__


class Repair(str, enum.Enum):
    """Whether this package repairs a defect that hits."""

    YES = "repaired"
    FORCED = "repaired if forced"
    NO = "not repaired"
    UNKNOWN = "unknown"
    NEEDLESS = "needless"

    __str__ = str.__str__


@dataclass(frozen=True)
class Row:
    """The answer for one defect in one environment.

    Attributes:
        id: The defect.
        kind: ``patch`` if there is one, ``known`` if not.
        title: It in a sentence.
        releases: Those that it was judged for, by distribution.
        hit: Whether it hits.
        repair: Whether it is repaired.
        reason: What both rest on.
        advice: What to do; empty if nothing.
        upstream: The most important link.
    """

    id: str
    kind: str
    title: str
    releases: Mapping[str, str]
    hit: Hit
    repair: Repair
    reason: str
    advice: str
    upstream: str


def answer(patches: Iterable[Defect], pins: Pins, evidence: Evidence) -> list[Row]:
    """Answer for every patch; what hits and is not repaired comes first.

    Args:
        patches: The patches.
        pins: The environment.
        evidence: All measurements.

    Returns:
        One row per patch.
    """
    rows = [_row(patch, pins, evidence) for patch in patches]
    return sorted(rows, key=lambda row: (list(Hit).index(row.hit), row.repair is Repair.YES, row.id))


def needs_attention(row: Row) -> bool:
    """Return whether a row is a reason to think before the environment is used.

    What is known and not repaired anywhere is no news: it would be one in every environment.

    Args:
        row: The answer for one defect.
    """
    return row.kind == "patch" and (row.hit is Hit.UNMEASURED or (row.hit is Hit.YES and row.repair is not Repair.YES))


def environment_of(patch: Defect, pins: Pins) -> str | None:
    """Return the name of the matrix's environment that has the pinned releases, None if one of them has no number.

    Args:
        patch: The patch; its distributions are named in its order.
        pins: The environment.
    """
    releases: dict[str, Version | str] = {}
    for name in patch.affected.distributions:
        installed = pins.find(name)
        if installed is None or installed.version is None:
            return None
        releases[name] = installed.version.public
    return name_environment(releases)


def _row(patch: Defect, pins: Pins, evidence: Evidence) -> Row:
    found = {name: installed for name in patch.affected.distributions if (installed := pins.find(name)) is not None}
    releases = {name: str(installed.version or "unknown") for name, installed in found.items()}
    decision = decide(patch, pins.find, lambda place: _known_digest(place, pins, evidence))
    cell = _cell(patch, pins, evidence)
    hit, repair, reason = _judge(patch, decision, cell)
    kind = "patch" if patch.fixes else "known"
    return Row(
        patch.id, kind, patch.title, releases, hit, repair, reason, _advice(patch, hit, repair), patch.upstream[0]
    )


def _judge(patch: Defect, decision: Decision, cell: Cell | None) -> tuple[Hit, Repair, str]:
    if decision.answer is Answer.NOT_INSTALLED:
        return Hit.ABSENT, Repair.NEEDLESS, decision.reason
    if cell is not None and cell.present is not None:
        hit, repair, reason = _measured(patch, cell)
        return hit, repair, f"{decision.reason}; measured {cell.date}: {reason}"
    how = "by the declared range" if patch.measured else "upstream's word, not measured"
    if decision.answer is Answer.YES:
        reason = decision.reason if is_recognised(decision) else f"{decision.reason}; {how}"
        return Hit.YES, Repair.YES if patch.fixes else Repair.NO, reason
    if decision.answer is Answer.NO:
        return Hit.NO, Repair.NEEDLESS, f"{decision.reason}; {how}"
    return Hit.UNMEASURED, Repair.UNKNOWN, decision.reason


def _measured(patch: Defect, cell: Cell) -> tuple[Hit, Repair, str]:
    if not cell.present:
        return Hit.NO, Repair.NEEDLESS, "not there"
    if not patch.fixes:
        return Hit.YES, Repair.NO, "there"
    if cell.forced:
        return Hit.YES, Repair.FORCED, f"there; gone with the fix, which NRL_PATCHES_FORCE={patch.id} applies"
    works = cell.verdict == Verdict.NEEDED
    said = "there without the patch, gone with it" if works else f"there; with the patch: {cell.verdict}"
    return Hit.YES, Repair.YES if works else Repair.NO, said


def _cell(patch: Defect, pins: Pins, evidence: Evidence) -> Cell | None:
    """What was measured of a patch with exactly these releases; of one distribution alone, with any companion."""
    environment = environment_of(patch, pins)
    if environment is None:
        return None
    exact = evidence.measurements.get(environment)
    if exact is not None and patch.id in exact.cells:
        return exact.cells[patch.id]
    if len(patch.affected.distributions) > 1:
        return None
    cells = [
        measurement.cells[patch.id]
        for name, measurement in evidence.measurements.items()
        if environment in name.split(" & ") and patch.id in measurement.cells
    ]
    answers = {cell.present for cell in cells if cell.present is not None}
    return next((cell for cell in cells if cell.present is not None), None) if len(answers) == 1 else None


def _known_digest(place: str, pins: Pins, evidence: Evidence) -> str:
    package = place.partition(":")[0].partition(".")[0]
    versions = {import_package(name): version for name, version in pins.releases.items()}
    version = versions.get(package)
    return evidence.code.get(place, {}).get(version.public if version else "", "not known")


def _advice(patch: Defect, hit: Hit, repair: Repair) -> str:
    names = " ".join(patch.affected.distributions)
    if hit is Hit.UNMEASURED:
        return f"nrl-patches audit --measure, or nrl-patches tripwires {patch.id} where it is installed ({names})"
    if hit is Hit.YES and repair is Repair.YES:
        return "import nrl_patches"
    if repair is Repair.FORCED:
        return f"import nrl_patches under NRL_PATCHES_FORCE={patch.id}; `nrl-patches matrix --update` declares it"
    return patch.advice or f"see {patch.upstream[0]}" if hit is Hit.YES else ""
