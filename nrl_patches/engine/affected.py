"""The releases in which a defect was observed, and the question whether the installed ones are among them.

Grammar of an ``affected`` declaration: a string, or a sequence of strings of which any may hold (alternatives).
Each string is one or more PEP 508 requirements joined by ``&``, which must all hold (a conjunction)::

    "transformers>=5.5.0,<5.5.2"                                  one range
    "transformers>=5.10.2,<5.12,!=5.10.4"                         a range with a hole
    "nemo-automodel>=0.3,<0.5 & transformers>=5.4,<5.6"           a pair of distributions
    ("transformers==5.10.2", "transformers>=5.11,<5.12")          alternatives
    "transformers>=5.9.0,<=5.24.0"                                a range whose end nobody knows

How a range ends says what is known. ``<5.6.0``: 5.6.0 was measured, and the defect is gone there. ``<=5.24.0``: 5.24.0
was the newest release when it was measured, and still has the defect; what comes after it is not known.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from nrl_patches.engine.distributions import Installed

__all__ = ["FLOORS", "Affected", "Answer", "Decision", "Range", "is_release", "missing_in"]

FLOORS: Mapping[str, Version] = {"torch": Version("2.13.0"), "vllm": Version("0.6.3")}
"""The oldest release that is measured, where the defects of a distribution may be older than that.

torch: the release on which everything is measured; none is installed for a measurement.
vLLM: in every release from there on the probes run with what the recipes of ``nrl_patches.matrix`` put beside it; 0.6.2
calls itself 0.6.1.dev238, and those before 0.6.0 import more than that (librosa, outlines, triton).
"""

_COMMIT = re.compile(r"g?(?=[0-9a-f]*[0-9])[0-9a-f]{7,40}")


class Answer(enum.Enum):
    """Whether the installed distributions are affected, as far as their versions can tell."""

    YES = "affected"
    NO = "not affected"
    UNDECIDED = "undecided"
    UNMEASURED = "unmeasured"
    NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Decision:
    """An answer and the sentence that justifies it.

    Attributes:
        answer: The answer.
        reason: The sentence.
        edges: Of UNMEASURED: the nearest release that was measured, by distribution.
    """

    answer: Answer
    reason: str
    edges: Mapping[str, Version] = field(default_factory=dict)


def is_release(version: Version) -> bool:
    """Return whether a version number stands for one published state of the code.

    Development and pre-release numbers do not (``5.6.0.dev0`` may be any commit before 5.6.0, with or without the
    fix that went into 5.5.2), nor does a local label that names a commit (``0.5.0+6de0c361``). A local label that
    names a build (``2.13.0+cpu``) does.

    Args:
        version: A version as PEP 440 reads it.
    """
    labels = (version.local or "").split(".")
    return not version.is_prerelease and not any(_COMMIT.fullmatch(label) for label in labels)


class Range(NamedTuple):
    """The releases of one distribution, and the text that declared them."""

    distribution: str
    releases: SpecifierSet
    text: str

    @property
    def end(self) -> tuple[Version, bool] | None:
        """The upper bound, and whether the bound itself has the defect; None where there is no plain bound."""
        bounds = []
        for part in self.releases:
            if part.operator in {"<", "<=", "=="}:
                with suppress(InvalidVersion):  # A wildcard.
                    bounds.append((Version(part.version), part.operator == "<="))
        return min(bounds, default=None)


class Affected:
    """A parsed ``affected`` declaration.

    Args:
        declaration: See the module docstring.

    Raises:
        ValueError: A part does not parse, or names no release at all.
    """

    def __init__(self, declaration: str | Sequence[str]) -> None:
        texts = (declaration,) if isinstance(declaration, str) else tuple(declaration)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"needs a requirement string or several, not {declaration!r}")
        self.alternatives = tuple(tuple(_range(part.strip()) for part in text.split("&")) for text in texts)

    def __str__(self) -> str:
        """Return the declaration as one line, the alternatives joined by ``or``."""
        return " or ".join(" & ".join(part.text for part in conjunction) for conjunction in self.alternatives)

    @property
    def distributions(self) -> tuple[str, ...]:
        """The canonical names of the distributions that the declaration speaks about, each once."""
        return tuple(dict.fromkeys(part.distribution for conjunction in self.alternatives for part in conjunction))

    def spelled_out(self) -> str:
        """Return the declaration for people: what ends with a fix, and what only with the newest measured release."""
        return " or ".join(" & ".join(map(self._spelled_out, conjunction)) for conjunction in self.alternatives)

    def _spelled_out(self, part: Range) -> str:
        if self.newest_measured(part.distribution) is None or part.end is None or not part.end[1]:
            return part.text
        return f"{part.text} (the newest measured, not fixed)"

    def newest_measured(self, distribution: str) -> Version | None:
        """Return the release of a distribution that was the newest when it was measured, and still has the defect.

        Args:
            distribution: Its canonical name.

        Returns:
            The release; None where the last range of the distribution ends with a fix.
        """
        parts = (part for conjunction in self.alternatives for part in conjunction)
        last = max(filter(None, (part.end for part in parts if part.distribution == distribution)), default=None)
        return last[0] if last is not None and last[1] else None

    def decide(self, find: Callable[[str], Installed | None]) -> Decision:
        """Compare the declaration with what is installed.

        Args:
            find: Maps a canonical distribution name to what is installed of it, None if nothing is.

        Returns:
            YES or NO where release numbers decide. UNDECIDED where only a look at the code can: a build between
            releases, or one without any version. UNMEASURED beyond the releases that were measured, where the defect
            was there in the last of them. NOT_INSTALLED where no alternative is installed completely.
        """
        found = {name: find(name) for name in self.distributions}
        decisions = [self._decide(conjunction, found) for conjunction in self.alternatives]
        for answer in (Answer.YES, Answer.UNDECIDED, Answer.UNMEASURED, Answer.NO):
            given = [decision for decision in decisions if decision.answer is answer]
            if given:
                return given[0]
        return Decision(Answer.NOT_INSTALLED, decisions[0].reason)

    def _decide(self, conjunction: tuple[Range, ...], found: Mapping[str, Installed | None]) -> Decision:
        reasons: dict[Answer, list[str]] = {answer: [] for answer in Answer}
        edges: dict[str, Version] = {}
        for part in conjunction:
            installed = found[part.distribution]
            edge = self._edge(part, installed)
            if edge is not None:
                edges[part.distribution] = edge
                reasons[Answer.UNMEASURED].append(f"{installed} {_beyond(installed, edge)}")
            else:
                answer, reason = _compare(part, installed)
                reasons[answer].append(reason)
        # A part that excludes the conjunction does so whatever the others say; any doubt outweighs a match.
        for answer in (Answer.NO, Answer.NOT_INSTALLED, Answer.UNMEASURED, Answer.UNDECIDED):
            if reasons[answer]:
                return Decision(answer, ", ".join(reasons[answer]), edges if answer is Answer.UNMEASURED else {})
        return Decision(Answer.YES, ", ".join(reasons[Answer.YES]))

    def _edge(self, part: Range, installed: Installed | None) -> Version | None:
        """The nearest measured release, if what is installed lies beyond it and it has the defect."""
        if installed is None or installed.version is None:
            return None
        version = Version(installed.version.public)
        newest, oldest = self.newest_measured(part.distribution), FLOORS.get(part.distribution)
        if newest is not None and version > newest:
            return newest
        if oldest is not None and version < oldest and part.releases.contains(oldest):
            return oldest
        return None


def _range(text: str) -> Range:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is no requirement: {error}") from error
    if not requirement.specifier or requirement.extras or requirement.marker or requirement.url:
        raise ValueError(f"{text!r} must be a distribution and its releases, and nothing else")
    return Range(canonicalize_name(requirement.name), requirement.specifier, text)


def missing_in(reason: str) -> list[str]:
    """Return the distributions that the reason of a decision says are not installed.

    Args:
        reason: The sentence, also where nothing else is left of the decision.
    """
    return re.findall(r"([\w.-]+) is not installed", reason)


def _compare(part: Range, installed: Installed | None) -> tuple[Answer, str]:
    if installed is None:
        return Answer.NOT_INSTALLED, f"{part.distribution} is not installed"
    if installed.version is None or not is_release(installed.version):
        return Answer.UNDECIDED, f"{installed} is no release"
    if not part.releases.contains(installed.version.public):
        return Answer.NO, f"{installed} is not in {part.text}"
    return Answer.YES, f"{installed} is in {part.text}"


def _beyond(installed: Installed | None, edge: Version) -> str:
    newer = installed is not None and installed.version is not None and installed.version > edge
    return f"is {'newer' if newer else 'older'} than {edge}, the {'newest' if newer else 'oldest'} measured, affected"
