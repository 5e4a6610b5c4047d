"""The names of environments: the releases that are measured together, and whether a patch declares them."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.utils import canonicalize_name
from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.engine.affected import Affected, Answer
from nrl_patches.engine.distributions import Installed

__all__ = ["FUTURE", "is_declared", "name_environment", "names_environment", "parse_environment"]

FUTURE = Version("9999")
"""A release that no declaration may name: it is still to come."""


def parse_environment(environment: str) -> dict[str, Version]:
    """Return the releases that an environment is named by, in its order.

    Args:
        environment: Such as ``nemo-automodel==0.6.0 & transformers==5.12.1``.

    Raises:
        ValueError: It has another form.
    """
    parts = (part.split("==") for part in environment.split(" & "))
    return {canonicalize_name(name): Version(version) for name, version in parts}


def name_environment(releases: Mapping[str, Version | str]) -> str:
    """Return the name of an environment; the inverse of :func:`parse_environment`.

    Args:
        releases: The version of each distribution, in the order of the name.
    """
    return " & ".join(f"{name}=={version}" for name, version in releases.items())


def is_declared(patch: Defect, environment: str) -> bool:
    """Return whether the ``affected`` of a patch names an environment.

    Args:
        patch: The patch.
        environment: The name of the environment; a distribution that it does not name counts as not installed.
    """
    return names_environment(patch.affected, environment)


def names_environment(affected: Affected, environment: str) -> bool:
    """Return whether a declaration names an environment.

    Args:
        affected: The declaration.
        environment: The name of the environment.
    """
    releases = parse_environment(environment)
    decision = affected.decide(lambda name: Installed(name, releases[name]) if name in releases else None)
    return decision.answer is Answer.YES
