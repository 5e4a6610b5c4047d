"""What to measure: which releases of which distribution, together with which others, and which patches there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.engine.affected import FLOORS, Range
from nrl_patches.matrix.index import Release
from nrl_patches.matrix.names import FUTURE, name_environment, parse_environment

__all__ = ["COMPANIONS", "MARGIN", "Selection", "Task", "axis", "declared_finals", "is_in_scope", "plan"]


MARGIN = 2
"""How many releases before and after the declared ones are measured too."""

COMPANIONS: Mapping[str, str] = {"nemo-automodel": "transformers", "peft": "transformers"}
"""Distributions that do not import without another one that has patches of its own."""

Pin = Callable[[str, str, str], "Requirement | None"]
"""What a release (distribution, version) requires of its companion."""


@dataclass(frozen=True)
class Task:
    """One environment and the patches to measure there."""

    environment: str
    patches: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """What the user asked for; by default everything that the declarations speak about.

    Attributes:
        specifier: Only these releases, in the place of the declared ones with a margin.
        prereleases: Whether pre-releases are measured too.
        margin: How many releases on both sides of the declared ones.
    """

    specifier: SpecifierSet | None = None
    prereleases: bool = False
    margin: int = MARGIN


def is_in_scope(distribution: str, version: Version) -> bool:
    """Whether a release is measured and judged at all.

    Args:
        distribution: Its canonical name.
        version: The release; in scope from :data:`FLOORS` on.
    """
    return distribution not in FLOORS or version >= FLOORS[distribution]


def axis(patch: Defect) -> str:
    """Return the distribution along whose releases a patch is measured: the first that it names.

    Args:
        patch: The patch.
    """
    return patch.affected.distributions[0]


def plan(
    patches: Iterable[Defect], releases: Mapping[str, Sequence[Release]], selection: Selection, pin: Pin
) -> list[Task]:
    """Return what to measure, newest releases first.

    Args:
        patches: The patches.
        releases: What the index has of each distribution that they speak about, oldest first.
        selection: What the user asked for.
        pin: What a release requires of its companion.
    """
    by_axis: dict[str, list[Defect]] = {}
    for patch in patches:
        by_axis.setdefault(axis(patch), []).append(patch)
    tasks: list[Task] = []
    for distribution, here in sorted(by_axis.items(), reverse=True):
        for version in reversed(_chosen(distribution, here, releases[distribution], selection)):
            there: dict[str, list[str]] = {}
            for environment in _environments(distribution, version, here, releases, pin):
                names = set(parse_environment(environment))
                there[environment] = [p.id for p in here if names.issuperset(p.affected.distributions)]
            for patch in here:
                for environment in _between(patch, version, releases):
                    ids = there.setdefault(environment, [])
                    ids += [] if patch.id in ids else [patch.id]
            tasks += [Task(environment, tuple(ids)) for environment, ids in there.items() if ids]
    return tasks


def _chosen(
    distribution: str, patches: Sequence[Defect], releases: Sequence[Release], selection: Selection
) -> list[Version]:
    # A yanked release is still what somebody has installed; a pre-release is measured where it is asked for.
    usual = (r.version for r in releases if selection.prereleases or not r.version.is_prerelease)
    candidates = [version for version in usual if selection.specifier or is_in_scope(distribution, version)]
    if selection.specifier is not None:
        return list(selection.specifier.filter(candidates, prereleases=selection.prereleases))
    ranges = [part.releases for patch in patches for part in _parts(patch, distribution)]
    inside = [n for n, version in enumerate(candidates) if any(r.contains(version.public) for r in ranges)]
    yanked = {release.version for release in releases if release.remark.startswith("yanked")}
    # The newest that installers choose may not be the newest.
    newest = {*candidates[-1:], *[version for version in candidates if version not in yanked][-1:]}
    if not inside:
        return sorted(newest)
    first, last = (_margin(candidates, yanked, inside[end], step, selection.margin) for end, step in ((0, -1), (-1, 1)))
    window = candidates[first : last + 1]
    return sorted({*window, *newest})


def _margin(candidates: Sequence[Version], yanked: set[Version], place: int, step: int, margin: int) -> int:
    """Return where the margin beside a place ends; what was yanked lies in it, but does not count."""
    while margin and 0 <= place + step < len(candidates):
        place += step
        margin -= candidates[place] not in yanked
    return place


def _environments(
    distribution: str,
    version: Version,
    patches: Sequence[Defect],
    releases: Mapping[str, Sequence[Release]],
    pin: Pin,
) -> list[str]:
    companion = COMPANIONS.get(distribution)
    if companion is None:
        return [name_environment({distribution: version})]
    available = [r.version for r in releases[companion] if not r.remark]
    beside = _edges(companion, patches, available)
    required = pin(distribution, str(version), companion)
    # A requirement that names no release says nothing about which one to take.
    allowed = list(required.specifier.filter(available)) if required is not None and required.specifier else []
    # The newest that it allows; where it names no end, the oldest, which it was written for.
    endless = required is not None and required.specifier.contains(FUTURE)
    chosen = dict.fromkeys([*(allowed[:1] if endless else allowed[-1:]), *beside])
    return [name_environment({distribution: version, companion: other}) for other in chosen]


def _edges(companion: str, patches: Sequence[Defect], available: Sequence[Version]) -> list[Version]:
    """The releases at which a declared range of the companion begins and ends, and their outer neighbours."""
    edges: set[int] = {len(available) - 1}
    for patch in patches:
        for part in _parts(patch, companion):
            inside = [n for n, version in enumerate(available) if part.releases.contains(version)]
            if inside:
                edges |= {max(inside[0] - 1, 0), inside[0], inside[-1], min(inside[-1] + 1, len(available) - 1)}
    return [available[n] for n in sorted(edges)]


def _between(patch: Defect, version: Version, releases: Mapping[str, Sequence[Release]]) -> list[str]:
    """All declared releases of the companion, with the first and the last release that a patch declares."""
    companion = COMPANIONS.get(axis(patch), "")
    declared = declared_finals(patch, axis(patch), [r.version for r in releases[axis(patch)] if not r.remark])
    if companion not in patch.affected.distributions or version not in {*declared[:1], *declared[-1:]}:
        return []
    others = declared_finals(patch, companion, [r.version for r in releases[companion] if not r.remark])
    return [name_environment({axis(patch): version, companion: other}) for other in others]


def declared_finals(patch: Defect, distribution: str, finals: Iterable[Version]) -> list[Version]:
    """Return those of some final releases of a distribution that a patch declares.

    Args:
        patch: The patch.
        distribution: One that it is about.
        finals: The releases, in any order; the answer has theirs.
    """
    ranges = [part.releases for part in _parts(patch, distribution)]
    return [version for version in finals if any(r.contains(version) for r in ranges)]


def _parts(patch: Defect, distribution: str) -> list[Range]:
    return [
        part for conjunction in patch.affected.alternatives for part in conjunction if part.distribution == distribution
    ]
