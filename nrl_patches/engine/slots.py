"""Replaces a callable for every reference to it, and restores exactly what was there.

Each target has one slot, and each patch of that target one layer in it, so that layers can be removed in any order.
What is installed is a plain function: where the forward of a submodule is a ``wrapt.FunctionWrapper``, torch's compiler
silently skips it and traces the original (``tests/engine/test_wrapping_trap.py`` reproduces that).

Assigning ``__code__`` in place would avoid the search for references, but has other costs: its trampoline either
rejects the parameters that a fix adds or breaks the graphs that dynamo traced before, builtins and third-party wrappers
would need the search all the same, and warnings would name another file; ``tests/engine/test_why_not_code_swap.py``
tries it.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from types import FunctionType, ModuleType
from typing import Any

import wrapt

from nrl_patches.declaration import Build, Fix
from nrl_patches.engine.import_hooks import withdraw as _  # noqa: F401 - see register_at_fork below
from nrl_patches.engine.module_state import is_executing, process_module
from nrl_patches.engine.reachability import reaches
from nrl_patches.engine.references import Holders, find_copies, find_holders
from nrl_patches.engine.targets import MARK, MISSING, Mark, MismatchError, Site, describe, locate
from nrl_patches.errors import Problem, UndoError

__all__ = [
    "PROCESS_LOCK",
    "Slot",
    "check_removable",
    "forget_if_gone",
    "install",
    "is_installed",
    "slot_of",
    "uninstall",
]


_OF_THE_INTERPRETER = 1000
"""More objects than Python itself freezes (3.12.1: 375 tuples), and fewer than gc.freeze() does (4,000 and more)."""


def _process_lock() -> Any:
    return vars(process_module()).setdefault("lock", threading.RLock())


PROCESS_LOCK = _process_lock()
"""Held while targets change. Neither a guard nor a build may import under it: imports have their own locks."""

# Handlers run in the reverse order of registration before a fork: as undo does, this takes PROCESS_LOCK first and then
# the lock of nrl_patches.engine.import_hooks, which therefore must be imported first.
os.register_at_fork(
    before=PROCESS_LOCK.acquire, after_in_parent=PROCESS_LOCK.release, after_in_child=PROCESS_LOCK.release
)


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

    def rebuild(self, layers: dict[str, Build]) -> Holders:
        """Make the target consist of these layers, in every place that refers to the present callable.

        Args:
            layers: The builds, by patch id, innermost first.

        Returns:
            Who referred to the callable before; where it could not be replaced is among them.

        Raises:
            TypeError: A build did not return a new plain function; nothing is changed then.
            Exception: Whatever a build raises; nothing is changed then.
        """
        holders = self._holders()  # Before the builds close over the callable.
        function = self.site.function
        for patch_id, build in layers.items():
            function = _dress(build(function), function, patch_id)
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
        self.layers, self.function, self.raw = layers, function, raw
        return holders

    def _holders(self) -> Holders:
        """Find the other references to the present callable; on the heap only if the modules do not account for all."""
        # An inherited function is referred to by the base, which is not the target.
        if self.site.raw is MISSING or _count_others(self) == 0:
            return Holders()
        copies = find_copies(self.function)
        elsewhere = [copy for copy in copies if copy.owner is not self.site.owner or copy.name != self.site.name]
        # Count again: another thread may have added or removed a reference.
        if _count_others(self) == len(elsewhere):
            return Holders(copies)
        return find_holders(self.function, ignore=(Site, Slot, Mark), exclude=self.raw, owner=self.site.owner)


def _count_others(slot: Slot) -> int | None:
    """Count the references to an original except its owner's and those of the slot itself; None if unknown."""
    # Without the global interpreter lock, the reference counts of functions are split or deferred.
    if slot.layers or type(slot.raw) is not FunctionType or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None

    class Once:
        """Has a function that nothing else refers to: the references added by counting differ by Python version."""

        def function(self) -> None:
            """Do nothing."""

    once = Slot(Site(Once, "function", vars(Once)["function"], vars(Once)["function"], None))
    return _references(slot) - _references(once)


def _references(slot: Slot) -> int:
    return sys.getrefcount(slot.site.function)


_slots: dict[str, Slot] = {}
_SLOT = "_nrl_patches_slot"
_outlived: weakref.WeakSet[Any] = weakref.WeakSet()
"""What was installed in targets that were defined again since; instances and by-name copies still refer to it.

Each refers to its slot, by the attribute above: without references to it, there is nothing that an undo could restore.
"""


def slot_of(patch_id: str, fix: Fix) -> Slot | None:
    """Return the slot in which a patch has a layer for this fix, None if it has none.

    Args:
        patch_id: The patch.
        fix: One of its fixes.
    """
    slot = _slots.get(fix.target)
    return slot if slot is not None and patch_id in slot.layers else None


def is_installed(patch_id: str, fix: Fix, site: Site) -> bool:
    """Whether the callable at a site already runs the fix, whichever copy of this package installed it.

    Args:
        patch_id: The patch.
        fix: One of its fixes.
        site: Where the target of the fix is now.
    """
    return slot_of(patch_id, fix) is not None or (site.mark is not None and patch_id in site.mark.ids)


def forget_if_gone(fix: Fix, module: ModuleType) -> None:
    """Drop the slot of a target that a reload or a second import of its module has defined again.

    Args:
        fix: The fix.
        module: The module of its target, as it is now.
    """
    if fix.target in _slots:
        with suppress(MismatchError):  # Without a target, the slot is stale as well.
            site, slot = locate(module, fix), _slots[fix.target]
            if site.owner is slot.site.owner and reaches(site.function, slot.function, by_name=True):
                return
        _outlive(_slots.pop(fix.target))


def _outlive(slot: Slot) -> None:
    setattr(slot.function, _SLOT, slot)
    _outlived.add(slot.function)


def install(patch_id: str, fix: Fix, site: Site) -> list[str]:
    """Put a fix in place, on top of what other patches of this package have put there.

    Args:
        patch_id: The patch.
        fix: One of its fixes.
        site: Where the target is, see :func:`nrl_patches.engine.targets.locate`.

    Returns:
        Notes for the user: references that the fix could not reach, a third-party patch below it, a compiler that may
        have traced the target already.

    Raises:
        MismatchError: A third party has patched on top of another patch of ours.
        TypeError: The fix did not build a new plain function.
        Exception: Whatever the fix raises while it builds.
    """
    slot = _slots.get(fix.target) or Slot(site)
    if slot.intruder is not None:
        raise MismatchError(f"{fix.target} as this package left it", slot.intruder)
    notes = []
    third_party = _third_party(site.function, fix.module.partition(".")[0])
    if third_party and not slot.layers:
        notes.append(f"on top of {third_party}, which had replaced {fix.qualname} before")
    holders = slot.rebuild({**slot.layers, patch_id: fix.build})
    _slots[fix.target] = slot
    notes += _unreached(fix.qualname, holders)
    if holders.used_gc and gc.get_freeze_count() > _OF_THE_INTERPRETER and not is_executing(fix.module):
        notes.append(f"objects hidden by gc.freeze() were not searched for copies of {fix.qualname}")
    if _may_be_traced(fix.module):
        notes.append(f"torch.compile was used before; torch._dynamo.reset() drops what it traced of {fix.qualname}")
    return notes


def check_removable(patch_id: str, fixes: Iterable[Fix]) -> None:
    """Check that no third party has replaced one of the targets since.

    Args:
        patch_id: The patch.
        fixes: Those of its fixes that are to be removed.

    Raises:
        UndoError: A third party has.
    """
    for fix in fixes:
        slot = slot_of(patch_id, fix)
        if slot is not None and slot.intruder is not None:
            raise UndoError(
                Problem(
                    patch_id,
                    expected=f"{fix.target} as this package left it",
                    found=slot.intruder,
                    next_step="undo that first; no patch was undone",
                )
            )


def uninstall(patch_id: str, fixes: Sequence[Fix]) -> list[str]:
    """Remove the fixes of a patch, all or none.

    Args:
        patch_id: The patch.
        fixes: The fixes; those that are not installed are skipped.

    Returns:
        Notes for the user: references that keep the fix all the same.

    Raises:
        UndoError: A third party has replaced one of the targets since; no fix is removed then.
    """
    check_removable(patch_id, fixes)
    targets = {fix.target for fix in fixes}
    slots = {target: slot for target, slot in _slots.items() if target in targets and patch_id in slot.layers}
    older = [slot for slot in (vars(function)[_SLOT] for function in _outlived) if patch_id in slot.layers]
    notes = []
    for slot in (*slots.values(), *older):
        holders = slot.rebuild({other: build for other, build in slot.layers.items() if other != patch_id})
        notes += _unreached(slot.site.name, holders)
    for slot in older:
        if slot.layers:
            _outlive(slot)
    for target, slot in slots.items():
        if not slot.layers:
            del _slots[target]
    return notes


def _dress(new: Any, old: Callable[..., Any], patch_id: str) -> FunctionType:
    if not isinstance(new, FunctionType) or new is old:
        raise TypeError(f"a fix must build a new plain function, not {describe(new)}")
    functools.update_wrapper(new, old, updated=())
    # accelerate's unwrap_model would follow __wrapped__ and strip the fix, and dynamo's own attributes, which mark
    # the original as skipped or compiled, would bypass it.
    del new.__wrapped__  # type: ignore[attr-defined]
    kept = getattr(old, "__dict__", {}).items()
    new.__dict__.update(
        {name: value for name, value in kept if not name.startswith(("__wrapped__", "_torchdynamo", _SLOT))}
    )
    with suppress(ValueError):  # Some builtins have no signature to keep.
        new.__signature__ = inspect.signature(old)  # type: ignore[attr-defined]
    below: Mark = getattr(old, MARK, None) or Mark("", (), old, new.__code__)
    setattr(new, MARK, Mark(str(PurePath(__file__).parents[1]), (*below.ids, patch_id), below.pristine, new.__code__))
    return new


def _unreached(name: str, holders: Holders) -> list[str]:
    shown = ", ".join(dict.fromkeys(holders.unreachable))
    return [f"could not reach {len(holders.unreachable)} reference(s) to {name}: {shown}"] if shown else []


def _may_be_traced(module: str) -> bool:
    # dynamo does not guard on the methods of a class: what it traced before a replacement stays in use. A module that
    # is still being imported cannot have been traced.
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    return not is_executing(module) and bool(counters.get("stats"))


def _third_party(function: Any, package: str) -> str | None:
    if isinstance(function, wrapt.BaseObjectProxy):
        return describe(function)
    home = getattr(function, "__globals__", {}).get("__name__", package).partition(".")[0]
    # Upstream's own decorators may come from the standard library or torch (no_grad).
    return None if home in {package, "torch", *sys.stdlib_module_names} else describe(function)
