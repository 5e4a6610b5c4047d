"""The environment variables, which only this module reads, once."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from nrl_patches.engine.registry import Registry
from nrl_patches.errors import Problem
from nrl_patches.hosts.door import OFF, ON

__all__ = ["VARIABLES", "Settings"]

VARIABLES: Mapping[str, str] = {
    "NRL_PATCHES": "`0` switches everything off: no hook is registered.",
    "NRL_PATCHES_DISABLE": "Comma-separated ids or globs of patches that are not applied. Wins over the other lists.",
    "NRL_PATCHES_ONLY": "Comma-separated ids or globs; every other patch is not applied.",
    "NRL_PATCHES_FORCE": "Comma-separated ids or globs of patches that are applied outside their releases too.",
    "NRL_PATCHES_PACKAGES": "Comma-separated packages of patch files to load besides those that installed "
    "distributions declare.",
    "NRL_PATCHES_STRICT": "`1` turns every problem (drift, failure, an unmeasured release, a bad setting) into an "
    "exception.",
}
"""Every variable except the opt-outs of patches, and its effect. docs/environment.md has the same, by a test."""

_OTHERS = frozenset(
    {"NRL_PATCHES_CONTRACT", "NRL_PATCHES_RELEASES", "NRL_DISABLE_NUMA_BINDING", "NRL_DISABLE_NUMA_MEMBIND"}
)
"""Variables with a similar name that belong to this project's tests and to NeMo RL."""

_SHOWN = 60
_LONGEST = 1000  # Characters of an id or a glob.
_MOST = 20  # Unknown ids that are reported one by one, each with the nearest known one.
_CLOSE = 0.8


@dataclass(frozen=True)
class Settings:
    """The user's settings.

    Attributes:
        strict: Whether problems raise.
        disabled: For each patch that is not to be applied, the variable that disables it, as a phrase.
        forced: The ids of the patches to apply outside their declared releases.
        problems: Invalid or contradictory values; raised under strict mode, logged otherwise.
        enabled: False if ``NRL_PATCHES`` switches everything off.
    """

    strict: bool
    disabled: Mapping[str, str]
    forced: frozenset[str]
    problems: tuple[Problem, ...]
    enabled: bool = True

    @classmethod
    def read(cls, environ: Mapping[str, str], registry: Registry) -> Settings:
        """Read the variables. Never raises: a value that cannot be used is ignored and reported in ``problems``.

        Args:
            environ: The environment variables.
            registry: The patches whose ids and opt-outs the variables may name.

        Returns:
            The settings; without any variable, nothing is disabled or forced.
        """
        problems: list[Problem] = []
        reader = _Reader(environ, registry, problems)
        strict = reader.switch("NRL_PATCHES_STRICT", default=False)
        enabled = reader.switch("NRL_PATCHES", default=True)
        excluded = reader.ids("NRL_PATCHES_DISABLE") or frozenset()
        only = reader.ids("NRL_PATCHES_ONLY")
        forced = reader.ids("NRL_PATCHES_FORCE") or frozenset()
        reader.check_names({*VARIABLES, *(patch.opt_out for patch in registry)})
        disabled: dict[str, str] = {}
        for patch in registry:
            opted_out = reader.switch(patch.opt_out, default=False)
            if not enabled:
                disabled[patch.id] = "NRL_PATCHES=0"
            elif patch.id in excluded:
                disabled[patch.id] = "named in NRL_PATCHES_DISABLE"
            elif opted_out:
                disabled[patch.id] = f"{patch.opt_out}=1"
            elif only is not None and patch.id not in only:
                disabled[patch.id] = "not named in NRL_PATCHES_ONLY"
        if enabled:
            problems += [
                Problem(
                    "NRL_PATCHES_FORCE",
                    expected="patches that may be applied",
                    found=f"{patch_id}, which is disabled: {disabled[patch_id]}",
                    next_step="remove it from one of the two; it stays disabled",
                )
                for patch_id in sorted(forced & disabled.keys())
            ]
            problems += [broken.problem for broken in registry.broken if broken.id not in excluded]
        # Patches for one defect may share an opt-out; report a problem with it once.
        return cls(strict, disabled, forced - disabled.keys(), tuple(dict.fromkeys(problems)), enabled)


class _Reader:
    """Reads single variables, and appends invalid values to ``problems``."""

    def __init__(self, environ: Mapping[str, str], registry: Registry, problems: list[Problem]) -> None:
        self.environ = environ
        self.known = tuple(registry.patches)
        self.broken = tuple(broken.id for broken in registry.broken)
        self.retired = registry.retired
        self.problems = problems

    def switch(self, variable: str, *, default: bool) -> bool:
        """Return a variable as a boolean; empty and blank mean unset."""
        value = self.environ.get(variable, "").strip()
        if value.lower() in {*ON, *OFF}:
            return value.lower() in ON
        if value:
            self._problem(variable, "1 or 0", _shown(value), f"set it to 1 or 0; it counts as {int(default)} now")
        return default

    def ids(self, variable: str) -> frozenset[str] | None:
        """Return the ids that a variable's list of ids and globs names, None if it is unset, empty or blank."""
        parts = [part.strip() for part in self.environ.get(variable, "").split(",")]
        parts = [part for part in parts if part]
        if not parts:
            return None
        named: set[str] = set()
        unknown = []
        for part in dict.fromkeys(parts):
            # Skip what is far longer than any id: fnmatch takes a minute for "[" x 100,000.
            matches = fnmatch.filter((*self.known, *self.broken), part) if len(part) <= _LONGEST else []
            named.update(matches)
            unknown += [] if matches else [part]
        for part in unknown[:_MOST]:
            self._unknown(variable, part)
        if unknown[_MOST:]:
            rest = f"{len(unknown) - _MOST} more that match no patch"
            self._problem(variable, "ids of patches", rest, "`nrl-patches list` shows every id")
        return frozenset(named)

    def check_names(self, known: Collection[str]) -> None:
        """Report variables that are probably misspelt names of this package's variables."""
        for variable in sorted(name for name, value in self.environ.items() if value.strip()):
            if variable in known or variable in _OTHERS or not variable.upper().startswith("NRL"):
                continue
            retired = [f"{i}, {why}" for i, why in self.retired.items() if variable in re.findall(r"\w+", why)]
            if retired:
                self._problem(variable, "the switch of a patch of this version", f"that of {retired[0]}", "unset it")
            elif meant := _meant(variable, known):
                found = f"{_shown(variable)}, which nothing reads"
                self._problem(_shown(variable)[1:-1], "a variable that is read", found, f"did you mean {meant}?")

    def _unknown(self, variable: str, part: str) -> None:
        if part in self.retired:
            self._problem(variable, "a patch of this version", f"{part}, {self.retired[part]}", "remove it")
            return
        nearest = _nearest(part, (*self.known, *self.retired))
        expected = "a glob that matches a patch" if set(part) & set("*?[") else "the id of a patch"
        self._problem(variable, expected, _shown(part), f"{nearest}`nrl-patches list` shows every id")

    def _problem(self, variable: str, expected: str, found: str, next_step: str) -> None:
        self.problems.append(Problem(variable, expected=expected, found=found, next_step=next_step))


def _meant(variable: str, known: Collection[str]) -> str:
    """Return the variable that was probably meant by a name; empty if it seems to be unrelated."""
    name = variable.upper()
    if name.startswith("NRL_PATCHES"):  # A prefix that no other project uses.
        return _closest(name, [ours for ours in known if ours.startswith("NRL_PATCHES")], 0)
    # Part of an opt-out's name, such as NRL_DISABLE_GEMMA4 or NRL_DISABLE_GEMMA4_PATCH.
    words = set(name.split("_")) - {"PATCH"}
    partly = [ours for ours in sorted(known) if words < set(ours.split("_"))]
    if name.startswith("NRL_DISABLE_") and partly and words > {"NRL", "DISABLE"}:
        return min(partly, key=len)
    return _closest(name, known, _CLOSE)


def _closest(name: str, known: Collection[str], cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(name[: 4 * _SHOWN], known, n=1, cutoff=cutoff)), "")


def _nearest(part: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(part[: 4 * _SHOWN], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""


def _shown(value: str) -> str:
    # ascii: a surrogate or an invisible character from the environment must not break the log.
    return ascii(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}… ({len(value)} characters)")
