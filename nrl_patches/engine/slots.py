"""Replaces a callable for every reference to it, and restores exactly what was there.

Each target has one slot, and each patch of that target one layer in it, so that layers can be removed in any order.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import wrapt

from nrl_patches.engine.import_hooks import withdraw as _  # noqa: F401 - see register_at_fork below
from nrl_patches.engine.layers import SLOT, Slot
from nrl_patches.engine.module_state import is_executing, process_module
from nrl_patches.engine.reachability import reaches
from nrl_patches.engine.references import Holders
from nrl_patches.engine.targets import MARK, Site, describe, locate
from nrl_patches.errors import MismatchError, Problem, UndoError
from nrl_patches.fixes import Fix

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


_slots: dict[str, Slot] = {}
_outlived: weakref.WeakSet[Any] = weakref.WeakSet()
"""What was installed in targets that were defined again since; instances and by-name copies still refer to it.

Each refers to its slot by the attribute ``SLOT``: without references to it, there is nothing for an undo to restore.
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
    setattr(slot.function, SLOT, slot)
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
    holders = slot.rebuild({**slot.layers, patch_id: fix.build}, site)
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
    older = [slot for slot in (vars(function)[SLOT] for function in _outlived) if patch_id in slot.layers]
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
    if hasattr(function, MARK):
        return None  # What a class inherits may be patched in its base, by this package.
    home = getattr(function, "__globals__", {}).get("__name__", package).partition(".")[0]
    # Upstream's own decorators may come from the standard library or torch (no_grad).
    return None if home in {package, "torch", *sys.stdlib_module_names} else describe(function)
