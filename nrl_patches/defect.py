"""How a defect of an upstream release is declared; a patch is one that has a repair, see ``declaration``."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar, TypeVar

from nrl_patches.engine.affected import Affected
from nrl_patches.engine.distributions import import_package
from nrl_patches.engine.upstream_code import PLACE
from nrl_patches.errors import DeclarationError
from nrl_patches.fixes import Fix

__all__ = ["BUILTIN_PATCHES", "Defect", "Observation", "Probe"]

BUILTIN_PATCHES = "nrl_patches.patches."
"""What the names of this package's own patch files begin with."""

_STRIPPED = sys.flags.optimize > 1
_BUILTIN_DEFECTS = "nrl_patches.defects."


@dataclass(frozen=True)
class Observation:
    """What a probe saw.

    Attributes:
        present: Whether the defect is there.
        evidence: The measured values that say so, by name; numbers, strings and booleans only.
    """

    present: bool
    evidence: Mapping[str, float | str | bool] = field(default_factory=dict)


Probe = Callable[[], "Observation | bool"]
_ProbeT = TypeVar("_ProbeT", bound=Probe)


class Defect:
    """One upstream defect that this package knows. A file in ``nrl_patches/defects`` creates one, named ``defect``.

    Args:
        module: ``__name__`` of the file. The id is its path below ``nrl_patches.defects``.
        affected: The releases in which the probe saw the defect, and no others; see :mod:`nrl_patches.engine.affected`.
            Where it was looked for and is nowhere, a range without a release: ``vllm<0``.
        upstream: Links to the upstream issues and pull requests, most important first.
        advice: What a user should do, as a sentence.
        relies_on: Places in the code of the distributions that decide whether the defect is there; see
            :mod:`nrl_patches.engine.upstream_code` for their form. A release that nobody has measured is taken for the
            last measured one if these are what they were there.
        victims: Who meets the defect, and in which releases, in the form of ``affected``; where it lies in a mechanism
            that not everybody meets who has an affected release.
        measured: Whether a probe established the range; if not, it is upstream's word.

    Raises:
        DeclarationError: A field is missing, unknown or malformed; the message names the file.
    """

    headings: ClassVar[tuple[str, ...]] = ("Problem", "Hit by", "Advice", "Remove when")
    """What the docstring of the file must tell, each as ``Heading:`` at the start of a line."""

    def __init__(  # noqa: PLR0913 - one parameter per field
        self,
        module: str,
        *,
        affected: str | Sequence[str] = (),
        upstream: Sequence[str] = (),
        advice: str = "",
        relies_on: Sequence[str] = (),
        victims: Mapping[str, str | Sequence[str]] | None = None,
        measured: bool = True,
        **unknown: object,
    ) -> None:
        self.module = module
        self.id = module.removeprefix(BUILTIN_PATCHES).removeprefix(_BUILTIN_DEFECTS)
        self.upstream = tuple(upstream)
        self.home = ""
        """The package of another party that the file belongs to; empty for this one's own. Set by the registry."""
        self.advice = advice
        self.relies_on = tuple(relies_on)
        self.victims = dict(victims or {})
        self.measured = measured
        self.fixes: tuple[Fix, ...] = ()
        self._probe: Probe | None = None
        problems = [f"has no field {', '.join(sorted(unknown))}"] if unknown else []
        self.affected = self._parsed("affected", affected, problems)
        for releases in self.victims.values():
            self._parsed("victims", releases, problems)
        if isinstance(upstream, str) or not self.upstream or not all(u.startswith("https://") for u in self.upstream):
            problems.append("upstream: needs at least one https link to the issue or pull request")
        strange = [place for place in self.relies_on if not PLACE.fullmatch(place) or not self.is_about(place)]
        if isinstance(relies_on, str) or strange:
            problems.append(f"relies_on: needs module:qualname of a distribution in affected, not {relies_on!r}")
        problems += self._other_problems()
        if problems:  # All at once: who writes a file wants to know.
            raise self.error("; ".join(problems))

    def _other_problems(self) -> list[str]:
        return []

    def _parsed(self, name: str, releases: str | Sequence[str], problems: list[str]) -> Affected:
        try:
            return Affected(releases)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        return Affected("nothing<0")

    def __repr__(self) -> str:
        """Return the id in the form in which it is searched for."""
        return f"<{type(self).__name__} {self.id}>"

    def probe(self, function: _ProbeT) -> _ProbeT:
        """Declare the decorated function as the probe: it returns what it saw of the defect, by behaviour.

        Args:
            function: Called without arguments, in a process that has no patch or this one only. It imports and runs
                upstream's code, needs no network and no accelerator, and takes seconds.

        Returns:
            The function as it is.

        Raises:
            DeclarationError: The patch has a probe already.
        """
        if self._probe is not None:
            raise self.error("probe: has two")
        self._probe = function
        return function

    @property
    def has_probe(self) -> bool:
        """Whether there is a probe; a patch always has one."""
        return self._probe is not None

    def observe(self) -> Observation:
        """Run the probe in this process, as it is now, and return what it saw.

        A release without the modules of the targets cannot have the defect, so there the probe is not run.

        Returns:
            What the probe returned. If none of the targets' modules exists, an observation without the defect, whose
            evidence names the first of them as ``absent``.

        Raises:
            DeclarationError: There is no probe, or it returned something else than an :class:`Observation`.
            ModuleNotFoundError: A distribution of a target is not installed.
            Exception: Whatever the probe raises.
        """
        if self._probe is None:
            raise self.error("probe: has none")
        absent = [fix.module for fix in self.fixes if not _exists(fix.module)]
        if self.fixes and len(absent) == len(self.fixes):
            return Observation(present=False, evidence={"absent": absent[0]})
        seen = self._probe()
        if isinstance(seen, bool):  # The shortest probe.
            return Observation(present=seen)
        if not isinstance(seen, Observation):
            raise self.error(f"probe: must return an Observation, not {type(seen).__name__}")
        return seen

    @property
    def places(self) -> tuple[str, ...]:
        """The targets and what the patch relies on beside them, each once."""
        return tuple(dict.fromkeys([*(fix.target for fix in self.fixes), *self.relies_on]))

    @property
    def doc(self) -> str:
        """The docstring of the file."""
        return inspect.cleandoc(_docstring(sys.modules.get(self.module)))

    @property
    def title(self) -> str:
        """The first line of the docstring: the defect in one sentence."""
        return self.doc.partition("\n")[0]

    def check(self) -> None:
        """Check what is only known when the file has been executed.

        Raises:
            DeclarationError: No probe though the range was measured, no advice, or a docstring without one of the
                :attr:`headings`. Where Python strips docstrings (``-OO``) nobody writes declarations, and theirs are
                not looked for.
        """
        if self._probe is None and self.measured:
            raise self.error("probe: has none")
        if not self.advice:
            raise self.error("advice: has none")
        self.check_headings()

    def check_headings(self) -> None:
        """Check that the docstring of the file has every heading.

        Raises:
            DeclarationError: It lacks some. Not where Python strips docstrings.
        """
        missing = [h for h in self.headings if not re.search(rf"^{h}: \S", self.doc, re.MULTILINE)]
        if missing and not _STRIPPED:
            raise self.error(f"docstring: lacks {', '.join(missing)}")

    def is_about(self, place: str) -> bool:
        """Whether a place belongs to one of the distributions in ``affected``.

        Args:
            place: ``module``, or ``module:`` and anything.
        """
        package = place.partition(":")[0].partition(".")[0]
        return package in {import_package(name) for name in self.affected.distributions}

    def error(self, what: str) -> DeclarationError:
        """Return an error that names the file.

        Args:
            what: What is wrong with it.
        """
        file = getattr(sys.modules.get(self.module), "__file__", None) or self.module
        return DeclarationError(f"{file}: {what}")


def _docstring(module: ModuleType | None) -> str:
    kept = getattr(module, "__doc__", None)
    if kept is None and module is not None and _STRIPPED:
        with suppress(OSError, TypeError, SyntaxError):  # There may be no source, as where only bytecode was installed.
            kept = ast.get_docstring(ast.parse(inspect.getsource(module)), clean=False)
    return kept or ""


def _exists(module: str) -> bool:
    package = module.partition(".")[0]
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        if error.name is None or error.name == package or not module.startswith(f"{error.name}."):
            raise  # The distribution itself is missing, or what it imports.
        return False
    except ImportError:  # A package above it cannot be imported, which may be the defect.
        return True
