"""Reads which releases an environment has or would have: lock files, requirements, `pip freeze`, this process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from nrl_patches.audit.toml import read_toml
from nrl_patches.audit.uv_lock import combinations
from nrl_patches.engine.distributions import Installed, find_installed
from nrl_patches.errors import Problem

__all__ = ["Pins", "installed_pins", "pins_of", "read_pins"]

_EGG = re.compile(r"[#&]egg=([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class Pins:
    """The releases of one environment.

    Attributes:
        label: What tells it from the other environments of the same file; empty if there is one only.
        releases: By canonical name; None where a distribution is there in a version that the file does not tell.
        remarks: What could not be read, one sentence each.
    """

    label: str
    releases: Mapping[str, Version | None]
    remarks: tuple[str, ...] = field(default=())

    def find(self, distribution: str) -> Installed | None:
        """Return what the environment has of a distribution, as for :func:`~nrl_patches.engine.decision.decide`.

        Args:
            distribution: Its canonical name.
        """
        for name in (distribution, f"{distribution}-cpu"):  # vLLM's CPU build has a name of its own.
            if name in self.releases:
                return Installed(name, self.releases[name])
        return None

    def changed(self, requirements: Iterable[Requirement]) -> Pins:
        """Return the same with other releases of some distributions.

        Args:
            requirements: Each pinned with ``==``.
        """
        return replace(self, releases={**self.releases, **{canonicalize_name(r.name): _pin(r) for r in requirements}})


def installed_pins(distributions: Iterable[str]) -> list[Pins]:
    """Return what this environment has of some distributions.

    Args:
        distributions: Their canonical names.
    """
    found = {name: find_installed(name) for name in distributions}
    return [Pins("", {name: installed.version for name, installed in found.items() if installed is not None})]


def read_pins(file: Path, distributions: Iterable[str]) -> list[Pins]:
    """Read the environments that a file describes.

    Args:
        file: ``uv.lock``, ``pylock.toml`` or ``pylock.*.toml``, or lines of requirements, as `pip freeze` prints them.
        distributions: The canonical names that matter: combinations that differ in no other are one.

    Returns:
        One environment; several for a ``uv.lock`` with several versions of what matters.

    Raises:
        ValueError: It cannot be read as what its name says; the message names the file.
    """
    try:
        if file.name == "uv.lock":
            found = combinations(read_toml(file), frozenset(distributions))
            return [Pins(label, releases, remarks) for label, releases, remarks in found]
        if re.fullmatch(r"pylock(\.[^.]+)?\.toml", file.name):
            return [_pylock(file)]
        return [pins_of(file.read_text(encoding="utf-8"), file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            Problem(
                str(file),
                expected="uv.lock, pylock.toml, a requirements file or the output of `pip freeze`",
                found=f"{type(error).__name__}: {error}",
                next_step="give one of these; other locks can be exported, as by `uv export` or `pip freeze`",
            )
        ) from error


def pins_of(text: str, file: Path | None = None) -> Pins:
    """Read lines of requirements; what is not pinned is a remark.

    Args:
        text: The lines.
        file: Where they come from, for files that they include by ``-r``.

    Returns:
        The one environment that they describe.

    Raises:
        InvalidRequirement: A line is no requirement.
    """
    releases: dict[str, Version | None] = {}
    remarks: list[str] = []
    for line in _lines(text):
        if line.startswith(("-r", "--requirement", "-c", "--constraint")) and file is not None:
            included = file.parent / line.split(maxsplit=1)[-1].removeprefix("-r").removeprefix("-c").strip()
            inner = pins_of(included.read_text(encoding="utf-8"), included)
            if line.startswith(("-r", "--requirement")):
                releases |= inner.releases
                remarks += inner.remarks
        elif line.startswith(("-e", "--editable")) or _is_url(line):
            egg = _EGG.search(line)
            if egg:
                releases[canonicalize_name(egg[1])] = None
            else:
                remarks.append(f"not read: {line}")
        elif not line.startswith("-"):
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            pinned = _pin(requirement)
            if pinned is None and not requirement.url:
                remarks.append(f"not pinned: {requirement}")
                continue
            releases[canonicalize_name(requirement.name)] = pinned
    return Pins("", releases, tuple(remarks))


def _is_url(line: str) -> bool:
    return not line.startswith("-") and "://" in line.partition(";")[0].partition(" @ ")[0]


def _lines(text: str) -> Iterable[str]:
    for line in text.replace("\\\n", " ").splitlines():
        # The hashes of `pip-compile --generate-hashes` say nothing about releases.
        told = re.sub(r"(^|\s)#.*$", "", line).partition(" --hash")[0].strip()
        if told:
            yield told


def _pin(requirement: Requirement) -> Version | None:
    for part in requirement.specifier:
        if part.operator in {"==", "==="}:
            try:
                return Version(part.version)
            except InvalidVersion:
                return None
    return None


def _pylock(file: Path) -> Pins:
    try:
        from packaging.pylock import Pylock, PylockValidationError  # noqa: PLC0415 - not in what the engine needs
    except ImportError as error:
        raise ValueError("packaging 26 or later reads it; an older one is installed") from error
    try:
        packages = Pylock.from_dict(read_toml(file)).packages
    except PylockValidationError as error:
        raise ValueError(str(error)) from error
    wanted = [
        p
        for p in packages
        if p.marker is None or p.marker.evaluate({"extras": set(), "dependency_groups": set()}, "lock_file")
    ]
    return Pins("", {p.name: p.version for p in wanted})
