"""The releases in which a defect was observed, and the question whether the installed ones are among them.

Grammar of an ``affected`` declaration: a string, or a sequence of strings of which any may hold (alternatives).
Each string is one or more PEP 508 requirements joined by ``&``, which must all hold (a conjunction)::

    "transformers>=5.5.0,<5.5.2"                                  one range
    "transformers>=5.10.2,<5.12,!=5.10.4"                         a range with a hole
    "nemo-automodel>=0.3,<0.5 & transformers>=5.4,<5.6"           a pair of distributions
    ("transformers==5.10.2", "transformers>=5.11,<5.12")          alternatives
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from nrl_patches.engine.distributions import Installed

__all__ = ["Affected", "Answer", "Decision", "Range", "is_release"]

_COMMIT = re.compile(r"g?(?=[0-9a-f]*[0-9])[0-9a-f]{7,40}")


class Answer(enum.Enum):
    """Whether the installed distributions are affected, as far as their versions can tell."""

    YES = "affected"
    NO = "not affected"
    UNDECIDED = "undecided"
    NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Decision:
    """An answer and the sentence that justifies it."""

    answer: Answer
    reason: str


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

    def decide(self, find: Callable[[str], Installed | None]) -> Decision:
        """Compare the declaration with what is installed.

        Args:
            find: Maps a canonical distribution name to what is installed of it, None if nothing is.

        Returns:
            YES or NO where release numbers decide. UNDECIDED where only a look at the code can: a build between
            releases, or one without any version. NOT_INSTALLED where no alternative is installed completely.
        """
        found = {name: find(name) for name in self.distributions}
        decisions = [_decide(conjunction, found) for conjunction in self.alternatives]
        for answer in (Answer.YES, Answer.UNDECIDED, Answer.NO):
            reasons = [d.reason for d in decisions if d.answer is answer]
            if reasons:
                return Decision(answer, reasons[0])
        return Decision(Answer.NOT_INSTALLED, decisions[0].reason)


def _range(text: str) -> Range:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is no requirement: {error}") from error
    if not requirement.specifier or requirement.extras or requirement.marker or requirement.url:
        raise ValueError(f"{text!r} must be a distribution and its releases, and nothing else")
    return Range(canonicalize_name(requirement.name), requirement.specifier, text)


def _decide(conjunction: tuple[Range, ...], found: dict[str, Installed | None]) -> Decision:
    undecided: list[str] = []
    matching: list[str] = []
    missing: list[str] = []
    for distribution, releases, text in conjunction:
        installed = found[distribution]
        if installed is None:
            missing.append(f"{distribution} is not installed")
        elif installed.version is None or not is_release(installed.version):
            undecided.append(f"{installed} is no release")
        elif not releases.contains(installed.version.public):
            return Decision(Answer.NO, f"{installed} is not in {text}")
        else:
            matching.append(f"{installed} is in {text}")
    if missing:
        return Decision(Answer.NOT_INSTALLED, ", ".join(missing))
    if undecided:
        return Decision(Answer.UNDECIDED, ", ".join(undecided))
    return Decision(Answer.YES, ", ".join(matching))
