"""How far the evidence reaches that this package came with, and what is installed beyond it. Used by `doctor`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping

from packaging.version import Version

from nrl_patches.bootstrap import activation
from nrl_patches.defect import Defect
from nrl_patches.engine.affected import Answer
from nrl_patches.engine.decision import decide, is_recognised
from nrl_patches.engine.distributions import find_installed
from nrl_patches.matrix.evidence import Evidence
from nrl_patches.matrix.names import parse_environment
from nrl_patches.processes.doctor import Finding

__all__ = ["age", "beyond_evidence", "measured_releases"]


def measured_releases(evidence: Evidence) -> Mapping[str, list[Version]]:
    """Return the releases of each distribution in which anything was measured, oldest first.

    Args:
        evidence: All measurements.
    """
    found: dict[str, set[Version]] = {}
    for environment, measurement in evidence.measurements.items():
        if measurement.cells:
            for name, version in parse_environment(environment).items():
                found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def age(evidence: Evidence, today: dt.date | None = None) -> str:
    """Return how old the evidence is, and which releases it ends with, as a sentence.

    Args:
        evidence: All measurements.
        today: The day to count from.
    """
    dates = [cell.date for measurement in evidence.measurements.values() for cell in measurement.cells.values()]
    if not dates:
        return "No release was measured."
    days = ((today or dt.datetime.now(dt.timezone.utc).date()) - dt.date.fromisoformat(max(dates))).days
    ends = ", ".join(f"{name} {versions[-1]}" for name, versions in measured_releases(evidence).items())
    return f"Last measured {days} day{'s' * (days != 1)} ago ({max(dates)}); the newest releases then: {ends}."


def beyond_evidence(evidence: Evidence | None = None) -> list[Finding]:
    """Return the patches that rest on code which nobody has measured, or that nobody knows the need of.

    Args:
        evidence: All measurements; what this package came with if None.
    """
    measured = measured_releases(evidence or Evidence.released())
    settings = activation().settings
    patches = [p for p in activation().registry if p.id not in settings.disabled and p.id not in settings.forced]
    return [*_unmeasured(patches), *_outside(measured)]


def _unmeasured(patches: Iterable[Defect]) -> Iterator[Finding]:
    for patch in patches:
        decision = decide(patch)
        if decision.answer is Answer.UNMEASURED:
            yield Finding(patch.id, f"unmeasured: {decision.reason}", f"`nrl-patches tripwires {patch.id}`")
        elif is_recognised(decision):
            step = f"`nrl-patches tripwires {patch.id}` measures it"
            yield Finding(patch.id, f"that {decision.reason}", step, unpatched=False)


def _outside(measured: Mapping[str, list[Version]]) -> Iterator[Finding]:
    for name, versions in measured.items():
        installed = find_installed(name)
        if installed is None or installed.version is None:
            continue
        version = Version(installed.version.public)
        if not versions[0] <= version <= versions[-1]:
            edge = (
                f"newer than {versions[-1]}, the newest"
                if version > versions[-1]
                else f"older than {versions[0]}, the oldest"
            )
            yield Finding(name, f"{installed}, {edge} measured", "`nrl-patches tripwires`", unpatched=False)
