"""Ids on the command line: what an id may name, the nearest one for a typo, and completion in the shell."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from nrl_patches.defect import Defect
from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.registry import load_defects

__all__ = [
    "ANY_ID",
    "MEASURABLE_ID",
    "PATCH_ID",
    "PROBED_ID",
    "PROBED_IDS",
    "every_defect",
    "every_known",
    "matching",
    "nearest",
]

_MOST = 3

if TYPE_CHECKING:
    _IdType = click.ParamType[str]  # Generic for type checkers, and at run time from click 8.4 on.
else:
    _IdType = click.ParamType


def every_defect() -> Mapping[str, Defect]:
    """Return all patches, and after them all defects without one, by id."""
    return {**default_activation().registry.patches, **load_defects()[0]}


def every_known() -> list[Defect]:
    """Return all patches, and after them the defects without one whose range was measured by a probe."""
    return [defect for defect in every_defect().values() if defect.has_probe]


def matching(patterns: Iterable[str]) -> list[Defect]:
    """Return the defects of some ids and patterns, each once, in the order of the patterns.

    Args:
        patterns: Ids, or patterns such as ``vllm.*``; only what has a probe is matched by a pattern.
    """
    known, probed = every_defect(), {defect.id: defect for defect in every_known()}
    found = {i: known[i] for p in patterns for i in ([p] if p in known else fnmatch.filter(probed, p))}
    return list(found.values())


def nearest(typed: str, known: Iterable[str]) -> str:
    """Return the question whether another id was meant; empty if none resembles it.

    Args:
        typed: What the user has typed: an id with a typo, or a part of one.
        known: All ids.
    """
    ids = list(known)
    found = difflib.get_close_matches(typed, ids, n=1)
    # A part of an id is too short to be close to it: `radio` shares a third of its letters with vllm.radio_layer_scale.
    parts = [part for part in re.split(r"[\W_]+", typed.lower()) if part]
    found = found or [known_id for known_id in ids if parts and all(part in known_id for part in parts)]
    *others, last = found[:_MOST] or [""]
    return f"did you mean {', '.join(others)}{' or ' * bool(others)}{last}?" if found else ""


class _Id(_IdType):
    """An id that must be known.

    Args:
        known: Returns the title of each defect that the command takes, by id.
        offered: Returns those that the shell completes; the same by default.
        lacks: What any other defect lacks, as a noun.
        patterns: Whether a pattern that some ids match is taken too.
    """

    name = "id"

    def __init__(
        self,
        known: Callable[[], Mapping[str, str]],
        offered: Callable[[], Mapping[str, str]] | None = None,
        lacks: str = "",
        *,
        patterns: bool = False,
    ) -> None:
        self._known, self._offered, self._lacks, self._patterns = known, offered or known, lacks, patterns

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        typed, known, retired = str(value), self._known(), default_activation().registry.retired
        if typed in known:
            return typed
        if typed in retired:
            self.fail(f"{typed} is retired: {retired[typed]}", param, ctx)
        if any(file.id == typed for file in default_activation().registry.broken):
            self.fail(f"the file of {typed} cannot be loaded; `nrl-patches check {typed}` says why", param, ctx)
        if self._patterns and fnmatch.filter(known, typed):
            return typed
        if typed in every_defect():
            self.fail(f"{typed} has no {self._lacks}; see `nrl-patches explain {typed}`", param, ctx)
        hint = nearest(typed, known) or "`nrl-patches list` shows every id"
        raise click.BadParameter(f"{typed!r} is not the id of a patch; {hint}", ctx, param)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        given = ctx.params.get(param.name or "")
        left = {i: title for i, title in self._offered().items() if not isinstance(given, tuple) or i not in given}
        # bash keeps of what is typed only what all answers begin with, so others are offered only where none does.
        found = [i for i in left if i.startswith(incomplete)] or [i for i in left if incomplete in i]
        return [CompletionItem(i, help=left[i]) for i in found]


def _titles(defects: Iterable[Defect]) -> Mapping[str, str]:
    return {defect.id: defect.title for defect in defects}


def _every_title() -> Mapping[str, str]:
    return _titles(every_defect().values())


def _measurable() -> Mapping[str, str]:
    return _titles(every_known())


def _patches() -> Mapping[str, str]:
    registry = default_activation().registry
    return {**_titles(registry), **{file.id: "cannot be loaded" for file in registry.broken}}


ANY_ID = _Id(_every_title)
"""The type of an argument or option that takes the id of a patch, or of a defect without one."""

PROBED_ID = _Id(_every_title, _measurable)
"""The same where only the ids of what has a probe are worth completing."""

PROBED_IDS = _Id(_every_title, _measurable, patterns=True)
"""The same, or a pattern; see :func:`matching`."""

MEASURABLE_ID = _Id(_measurable, lacks="probe")
"""The type for ids of what has a probe."""

PATCH_ID = _Id(_patches, lacks="patch")
"""The type for ids of patches; a file that cannot be loaded counts, so that `check` can say what is wrong with it."""
