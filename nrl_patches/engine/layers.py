"""One replaced target: the layers of fixes on it, and how they are rebuilt.

What is installed is a plain function: where the forward of a submodule is a ``wrapt.FunctionWrapper``, torch's compiler
silently skips it and traces the original (``tests/engine/test_wrapping_trap.py`` reproduces that).

Assigning ``__code__`` in place would avoid the search for references, but has other costs: its trampoline either
rejects the parameters that a fix adds or breaks the graphs that dynamo traced before, builtins and third-party wrappers
would need the search all the same, and warnings would name another file; ``tests/engine/test_why_not_code_swap.py``
tries it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from types import CellType, FunctionType
from typing import Any

from nrl_patches.engine.reachability import reaches
from nrl_patches.engine.references import Holders, find_copies, find_holders
from nrl_patches.engine.rewriting import Rewrite
from nrl_patches.engine.targets import MARK, MISSING, Mark, Site, describe
from nrl_patches.fixes import Build

__all__ = ["SLOT", "Slot"]

SLOT = "_nrl_patches_slot"
"""The attribute by which an installed function refers to its slot, once its target has been defined again."""


@dataclass(slots=True)
class Slot:
    """A replaced target.

    Attributes:
        site: Where it is, and the original.
        layers: The builds on it, by patch id, innermost first.
        function: The callable that is installed now.
        raw: The value in its owner's namespace now.
    """

    site: Site
    layers: dict[str, Build] = field(default_factory=dict)
    function: Callable[..., Any] = field(init=False)
    raw: Any = field(init=False)

    def __post_init__(self) -> None:
        """Start with the original."""
        self.function, self.raw = self.site.function, self.site.raw

    @property
    def intruder(self) -> str | None:
        """What has replaced the installed callable, None if nothing has."""
        there = vars(self.site.owner).get(self.site.name, MISSING)
        return None if there is self.raw else "nothing" if there is MISSING else describe(there)

    @property
    def is_reached(self) -> bool:
        """Whether a call of the target may still reach the installed callable, through a third-party wrapper."""
        return reaches(getattr(self.site.owner, self.site.name, None), self.function, by_name=True)

    @property
    def is_called(self) -> bool:
        """The same, but ``__wrapped__`` does not count: a replacement may set it without calling the original."""
        return reaches(getattr(self.site.owner, self.site.name, None), self.function, by_name=False)

    def rebuild(self, layers: dict[str, Build], found: Site | None = None) -> Holders:
        """Make the target consist of these layers, in every place that refers to the present callable.

        Args:
            layers: The builds, by patch id, innermost first.
            found: Where the caller found the target, which refers to the present callable as well.

        Returns:
            Who referred to the callable before; where it could not be replaced is among them.

        Raises:
            TypeError: A build did not return a new plain function; nothing is changed then.
            Exception: Whatever a build raises; nothing is changed then.
        """
        # A rewrite needs upstream's own source, which no replacement has.
        layers = dict(sorted(layers.items(), key=lambda layer: not isinstance(layer[1], Rewrite)))
        holders = self._holders(found)  # Before the builds close over the callable.
        function = self.site.function
        for patch_id, build in layers.items():
            function = _dress(build(function), function, patch_id, rewritten=isinstance(build, Rewrite))
        raw = self.site.raw
        if layers:
            raw = self.site.binding(function) if self.site.binding else function
        if self.intruder is not None:
            pass  # The target was defined again: another function has its name now.
        elif raw is MISSING:
            delattr(self.site.owner, self.site.name)
        else:
            setattr(self.site.owner, self.site.name, raw)
        for holder in holders.reachable:
            if vars(holder.owner).get(holder.name) is self.function:
                setattr(holder.owner, holder.name, function)
        for cell in self._own_cells():
            cell.cell_contents = function
        self.layers, self.function, self.raw = layers, function, raw
        return holders

    def _own_cells(self) -> list[CellType]:
        """Return the cells by which the original refers to the present callable, which is itself at first.

        A wrapper may ask whether it is the outermost one: from transformers 5.23.0 on only that checkpoints a layer.
        """
        cells = getattr(self.site.function, "__closure__", None) or ()
        return [cell for cell in cells if _content(cell) is self.function]

    def _holders(self, found: Site | None) -> Holders:
        """Find the other references to the present callable; on the heap only if the modules do not account for all."""
        own = self._own_cells()
        known = len(own)
        if found is not None and found is not self.site:
            known += (found.function is self.function) + (found.raw is self.function)
        # An inherited function is referred to by the base, which is not the target.
        if self.site.raw is MISSING or _count_others(self) == known:
            return Holders()
        # Those who import it are mostly of its own package, and the modules have some 200,000 names together.
        for package in (self.site.function.__module__.partition(".")[0], ""):
            copies = find_copies(self.function, package)
            elsewhere = [copy for copy in copies if copy.owner is not self.site.owner or copy.name != self.site.name]
            # Count again: another thread may have added or removed a reference.
            if _count_others(self) == len(elsewhere) + known:
                return Holders(copies)
        ignore = (Site, Slot, Mark)
        return find_holders(self.function, ignore=ignore, exclude=self.raw, cells=own, owner=self.site.owner)


def _count_others(slot: Slot) -> int | None:
    """Count the references to the present callable except its owner's and those of the slot; None if unknown."""
    # Without the global interpreter lock, the reference counts of functions are split or deferred. An owner in which
    # the target was defined again refers to another function.
    is_counted = getattr(sys, "_is_gil_enabled", lambda: True)()
    if type(slot.raw) is not FunctionType or slot.intruder is not None or not is_counted:
        return None

    class Once:
        """Has a function that nothing else refers to: the references added by counting differ by Python version."""

        def function(self) -> None:
            """Do nothing."""

    once = Slot(Site(Once, "function", vars(Once)["function"], vars(Once)["function"], None))
    if slot.layers:

        def installed() -> None:
            pass

        once.function = once.raw = installed
        Once.function = installed  # type: ignore[method-assign, assignment]
        del installed
    return _references(slot) - _references(once)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # Nothing was assigned to it yet.
        return MISSING


def _references(slot: Slot) -> int:
    return sys.getrefcount(slot.function)


def _dress(new: Any, old: Callable[..., Any], patch_id: str, *, rewritten: bool) -> FunctionType:
    if not isinstance(new, FunctionType) or new is old:
        raise TypeError(f"a fix must build a new plain function, not {describe(new)}")
    decorated = vars(new).get("__wrapped__") if rewritten else None
    functools.update_wrapper(new, old, updated=())
    # accelerate's unwrap_model would follow __wrapped__ and strip the fix, and dynamo's own attributes, which mark
    # the original as skipped or compiled, would bypass it.
    del new.__wrapped__  # type: ignore[attr-defined]
    if decorated is not None:  # What upstream's decorators wrap, which has the fix.
        new.__wrapped__ = decorated  # type: ignore[attr-defined]
    kept = getattr(old, "__dict__", {}).items()
    new.__dict__.update(
        {name: value for name, value in kept if not name.startswith(("__wrapped__", "_torchdynamo", SLOT))}
    )
    with suppress(ValueError):  # Some builtins have no signature to keep.
        new.__signature__ = inspect.signature(old)  # type: ignore[attr-defined]
    below: Mark = getattr(old, MARK, None) or Mark("", (), old, new.__code__)
    setattr(new, MARK, Mark(str(PurePath(__file__).parents[1]), (*below.ids, patch_id), below.pristine, new.__code__))
    return new
