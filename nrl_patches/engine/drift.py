"""What a patch's status is now: whether what was applied is still what a call of the target arrives at."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

from nrl_patches.declaration import Patch
from nrl_patches.engine.decision import decide
from nrl_patches.engine.module_bodies import is_rewritten
from nrl_patches.engine.module_state import is_executing, is_lazy
from nrl_patches.engine.outcome import DECIDED
from nrl_patches.engine.reachability import callees, calls_inherited, overriding, reaches
from nrl_patches.engine.slots import Slot, slot_of
from nrl_patches.engine.status import Record, State, Status
from nrl_patches.engine.targets import Site, describe, locate, mark_of
from nrl_patches.errors import MismatchError
from nrl_patches.fixes import Fix

__all__ = ["status_of"]


def status_of(patch: Patch, record: Record, *, forced: bool) -> Status:
    """Return the status of a patch as others have left it. Imports nothing but packages above those of the targets.

    Args:
        patch: The patch.
        record: What is remembered of it.
        forced: Whether it is applied whatever the versions say.
    """
    status = Status(patch.id, record.state, record.reason, record.notes, record.traceback)
    if record.state is State.PENDING:
        decision = decide(patch)
        if decision.answer in DECIDED and not forced:
            return replace(status, state=DECIDED[decision.answer], reason=decision.reason)
        status = replace(status, reason=f"{decision.reason}; {record.awaits(patch)}")
    if record.state in {State.APPLIED, State.PENDING}:
        for fix in (fix for fix in patch.fixes if fix.target in record.done):
            drift, notes = _look(patch.id, fix)
            if drift:
                return replace(status, state=State.DRIFTED, reason=drift)
            status = replace(status, notes=(*status.notes, *notes))
    return status


def _look(patch_id: str, fix: Fix) -> tuple[str, list[str]]:
    """Return what took the place of a fix, empty if nothing did, and notes for the user."""
    slot = slot_of(patch_id, fix)
    notes: list[str] = []
    if slot is not None and slot.intruder is not None:
        if not slot.is_reached:
            return f"{fix.target} was replaced since by {slot.intruder}", notes
        doubt = "" if slot.is_called else ", which may not call it"
        notes.append(f"{fix.qualname} was wrapped since by {slot.intruder}{doubt}")
    module = sys.modules.get(fix.module)
    if not fix.qualname:
        again = isinstance(module, ModuleType) and not is_executing(fix.module) and not is_rewritten(patch_id, fix)
        return f"{fix.module} was executed again since, without its rewrite" if again else "", notes
    if isinstance(module, ModuleType) and not is_lazy(module) and not is_executing(fix.module):
        try:
            site = locate(module, fix)
        except MismatchError as mismatch:
            return f"{fix.target} no longer exists: {mismatch.found}", notes
        if not _is_in_place(patch_id, slot, site):
            return f"{fix.target} was replaced since by {describe(site.function)}", notes
    if slot is not None and isinstance(slot.site.owner, type):
        package = fix.module.partition(".")[0]
        notes += [
            f"{subclass.__module__}.{subclass.__qualname__} overrides {fix.qualname} and does not call it"
            for subclass in overriding(slot.site.owner, slot.site.name, slot.function, package)
        ]
    return "", notes


def _is_in_place(patch_id: str, slot: Slot | None, site: Site) -> bool:
    if slot is None:  # Another copy of this package has applied it.
        marks = map(mark_of, callees(site.function, by_name=True))
        return any(mark is not None and patch_id in mark.ids for mark in marks)
    owner = slot.site.owner
    # Somebody may have put a class of their own in the place of the one that has the fix.
    if site.owner is owner or reaches(site.function, slot.function, by_name=True):
        return True
    derived = isinstance(owner, type) and isinstance(site.owner, type) and issubclass(site.owner, owner)
    return derived and calls_inherited(site.function, site.name, owner)
