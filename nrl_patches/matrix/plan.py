"""What to measure: which releases of which distribution, beside which others, and which patches there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nrl_patches.affected import Range
from nrl_patches.declaration import Patch
from nrl_patches.matrix.environments import name_environment, parse_environment
from nrl_patches.matrix.index import Release

__all__ = ["COMPANIONS", "MARGIN", "Selection", "Task", "axis", "plan"]

_FUTURE = Version("9999")

MARGIN = 2
"""How many releases before and after the declared ones are measured too."""

COMPANIONS: Mapping[str, str] = {"nemo-automodel": "transformers"}
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


def axis(patch: Patch) -> str:
    """Return the distribution along whose releases a patch is measured: the first that it names."""
    return patch.affected.distributions[0]


def plan(
    patches: Iterable[Patch], releases: Mapping[str, Sequence[Release]], selection: Selection, pin: Pin
) -> list[Task]:
    """Return what to measure, newest releases first.

    Args:
        patches: The patches.
        releases: What the index has of each distribution that they speak about, oldest first.
        selection: What the user asked for.
        pin: What a release requires of its companion.
    """
    by_axis: dict[str, list[Patch]] = {}
    for patch in patches:
        by_axis.setdefault(axis(patch), []).append(patch)
    tasks: list[Task] = []
    for distribution, here in sorted(by_axis.items(), reverse=True):
        for version in reversed(_chosen(distribution, here, releases[distribution], selection)):
            for environment in _environments(distribution, version, here, releases, pin):
                there = set(parse_environment(environment))
                ids = tuple(patch.id for patch in here if there.issuperset(patch.affected.distributions))
                tasks += [Task(environment, ids)] if ids else []
    return tasks


def _chosen(
    distribution: str, patches: Sequence[Patch], releases: Sequence[Release], selection: Selection
) -> list[Version]:
    # A yanked release is still what somebody has installed; a pre-release is measured where it is asked for.
    candidates = [r.version for r in releases if selection.prereleases or not r.version.is_prerelease]
    if selection.specifier is not None:
        return list(selection.specifier.filter(candidates, prereleases=selection.prereleases))
    ranges = [part.releases for patch in patches for part in _parts(patch, distribution)]
    inside = [n for n, version in enumerate(candidates) if any(r.contains(version.public) for r in ranges)]
    if not inside:
        return candidates[-1:]
    window = candidates[max(inside[0] - selection.margin, 0) : inside[-1] + 1 + selection.margin]
    return window if candidates[-1] in window else [*window, candidates[-1]]


def _environments(
    distribution: str,
    version: Version,
    patches: Sequence[Patch],
    releases: Mapping[str, Sequence[Release]],
    pin: Pin,
) -> list[str]:
    companion = COMPANIONS.get(distribution)
    if companion is None:
        return [name_environment({distribution: version})]
    available = [r.version for r in releases[companion] if not r.remark]
    beside = _edges(companion, patches, available)
    required = pin(distribution, str(version), companion)
    allowed = list(required.specifier.filter(available)) if required is not None else []
    # The newest that it allows; where it names no end, the oldest, which it was written for.
    endless = required is not None and required.specifier.contains(_FUTURE)
    chosen = dict.fromkeys([*(allowed[:1] if endless else allowed[-1:]), *beside])
    return [name_environment({distribution: version, companion: other}) for other in chosen]


def _edges(companion: str, patches: Sequence[Patch], available: Sequence[Version]) -> list[Version]:
    """The releases at which a declared range of the companion begins and ends, and their outer neighbours."""
    edges: set[int] = {len(available) - 1}
    for patch in patches:
        for part in _parts(patch, companion):
            inside = [n for n, version in enumerate(available) if part.releases.contains(version)]
            if inside:
                edges |= {max(inside[0] - 1, 0), inside[0], inside[-1], min(inside[-1] + 1, len(available) - 1)}
    return [available[n] for n in sorted(edges)]


def _parts(patch: Patch, distribution: str) -> list[Range]:
    return [
        part for conjunction in patch.affected.alternatives for part in conjunction if part.distribution == distribution
    ]
