"""Whether a patch is to be applied here: by its declaration and, beyond what was measured, by the upstream code."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import TYPE_CHECKING

from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.engine.affected import Answer, Decision
from nrl_patches.engine.distributions import Installed, find_installed, import_package
from nrl_patches.engine.upstream_code import digest

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = ["decide", "evidence_file", "is_recognised", "places_of"]

Find = Callable[[str], "Installed | None"]
Digest = Callable[[str], str]


def decide(patch: Defect, find: Find = find_installed, digest_of: Digest = digest) -> Decision:
    """Decide by the installed versions and, where nobody has measured these, by the code. Imports nothing.

    Args:
        patch: The patch.
        find: Maps a canonical distribution name to what is installed of it, None if nothing is.
        digest_of: Maps a place in the upstream code to its digest; see :mod:`nrl_patches.engine.upstream_code`.

    Returns:
        What :meth:`~nrl_patches.engine.affected.Affected.decide` returns. Instead of UNMEASURED, YES where everything
        that the patch touches or relies on is what it was in the nearest release that was measured.
    """
    decision = patch.affected.decide(find)
    if decision.answer is not Answer.UNMEASURED:
        return decision
    changed = [
        f"{place} of {name} {edge}"
        for name, edge in decision.edges.items()
        for place in _changed(patch, name, edge, digest_of)
    ]
    if changed:
        return Decision(Answer.UNMEASURED, f"{decision.reason}; not the code of {', '.join(changed)}", decision.edges)
    same = ", ".join(
        f"{find(name)} was not measured; the code is that of {edge}" for name, edge in decision.edges.items()
    )
    return Decision(Answer.YES, same, decision.edges)


def is_recognised(decision: Decision) -> bool:
    """Return whether an answer rests on the code of a release that was not measured.

    Args:
        decision: What :func:`decide` returned.
    """
    return decision.answer is Answer.YES and bool(decision.edges)


def places_of(patch: Defect, distribution: str) -> list[str]:
    """Return the places in the code of a distribution that a patch touches or relies on.

    Args:
        patch: The patch.
        distribution: The canonical name of one that it is about.
    """
    package = import_package(distribution)
    return [place for place in patch.places if place.partition(":")[0].partition(".")[0] == package]


def evidence_file(package: str) -> Traversable:
    """Return where another party keeps the evidence of its patches: ``matrix.json`` in the package of the patch files.

    Args:
        package: The full name of the package.
    """
    return resources.files(package).joinpath("matrix.json")


def _changed(patch: Defect, distribution: str, edge: Version, digest_of: Digest) -> Iterator[str]:
    places = places_of(patch, distribution)
    for place in places:
        known = _known_code(patch.home).get(place, {}).get(str(edge))
        if known is None or known != digest_of(place):
            yield place
    if not places:
        yield import_package(distribution)


@functools.cache
def _known_code(package: str) -> Mapping[str, Mapping[str, str]]:
    """The digests that a party has kept, by place and release; of this package if the name is empty."""
    # Read as data: the engine must not import the matrix. Nobody else pays for parsing it.
    own = resources.files("nrl_patches").joinpath("matrix").joinpath("data").joinpath("matrix.json")
    try:
        file = evidence_file(package) if package else own
        code: Mapping[str, Mapping[str, str]] = json.loads(file.read_bytes()).get("code", {})
    except (OSError, ValueError, ImportError, AttributeError):  # It is not there, or cannot be read.
        return {}
    return code
