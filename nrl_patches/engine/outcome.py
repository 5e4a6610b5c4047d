"""Decides the outcome of a patch once a module with one of its targets has been executed, and what to report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType

from nrl_patches.declaration import Patch
from nrl_patches.engine.affected import Answer, Decision
from nrl_patches.engine.module_bodies import ImportedError, is_rewritten
from nrl_patches.engine.slots import slot_of
from nrl_patches.engine.status import Record, State, Status
from nrl_patches.engine.transaction import apply_fixes, block, drifted, failed
from nrl_patches.errors import DriftedError, MismatchError, PatchError, Problem, UnmeasuredError
from nrl_patches.fixes import Fix

__all__ = ["DECIDED", "Outcome", "give_up", "settle", "unapplicable"]

DECIDED = {
    Answer.NO: State.NOT_AFFECTED,
    Answer.NOT_INSTALLED: State.NOT_INSTALLED,
    Answer.UNMEASURED: State.UNMEASURED,
}
"""The states that the versions and the code decide, before any guard is asked."""


@dataclass(frozen=True)
class Outcome:
    """What is left to do when the lock is free again.

    Attributes:
        level: One of logging's, for the text.
        text: What the user should read; empty if that is nothing, or nothing new.
        error: What went wrong, for strict mode.
    """

    level: int = logging.INFO
    text: str = ""
    error: PatchError | None = None


def settle(
    patch: Patch, record: Record, fixes: Sequence[Fix], module: ModuleType, decision: Decision, *, forced: bool
) -> Outcome:
    """Apply the fixes of a patch that belong to a module, if the patch is to be applied. Called under PROCESS_LOCK.

    Args:
        patch: The patch.
        record: Its record, which is kept up to date.
        fixes: Those of its fixes that belong to the module.
        module: The module.
        decision: What the versions say.
        forced: Whether they are to be ignored.

    Returns:
        What to log or raise once the lock is released; the state and its reason are in ``record``.
    """
    if decision.answer in DECIDED and not forced:
        return _leave(patch, record, decision)
    try:
        notes = apply_fixes(patch, fixes, module)
    except MismatchError as mismatch:
        return _mismatched(patch, record, mismatch, decision, forced=forced)
    except Exception as error:  # noqa: BLE001 - a fix may raise anything; the host's import must go on
        return give_up(patch, record, failed(patch, error))
    again = all(fix.target in record.done for fix in fixes)
    record.done.update(fix.target for fix in fixes)
    record.notes = tuple(dict.fromkeys((*record.notes, *notes)))
    if any(fix.target not in record.done and may_be_imported(fix.module) for fix in patch.fixes):
        return Outcome()
    reason = _why(decision, forced=forced)
    record.state, record.reason, record.traceback = State.APPLIED, reason, ""
    return Outcome(text="" if again else f"applied {patch.id}: {'; '.join((reason, *record.notes))}")


def _mismatched(patch: Patch, record: Record, mismatch: MismatchError, decision: Decision, *, forced: bool) -> Outcome:
    if isinstance(mismatch, ImportedError):
        if record.state is not State.DRIFTED:  # Else edits did not match, whether or not the import needed them.
            record.state = State.NOT_AFFECTED
            record.reason = f"{decision.reason}, but only its import fails: {mismatch}"
        return Outcome()
    if decision.answer is not Answer.UNDECIDED or forced:
        return give_up(patch, record, drifted(patch, mismatch, decision))
    record.state, record.reason = State.NOT_AFFECTED, f"{decision.reason}; the guard decided: {mismatch.found}"
    return Outcome()


def may_be_imported(name: str) -> bool:
    """Whether a module is there to be imported, as far as can be told without importing a package above it.

    A patch of several models may be about some that are newer than the release.

    Args:
        name: Its full name.
    """
    package, _, rest = name.partition(".")
    if name in sys.modules or package not in sys.modules:
        return True
    path = getattr(sys.modules[package], "__path__", None)
    while rest and path is not None:
        part, _, rest = rest.partition(".")
        package = f"{package}.{part}"
        spec = PathFinder.find_spec(package, list(path))
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


def _leave(patch: Patch, record: Record, decision: Decision) -> Outcome:
    state = DECIDED[decision.answer]
    said = (record.state, record.reason) == (state, decision.reason)
    record.state, record.reason = state, decision.reason
    if state is not State.UNMEASURED:
        return Outcome()
    error = UnmeasuredError(_unmeasured(patch, decision))
    return Outcome(logging.WARNING, "" if said else f"{state}: {error}", error)


def give_up(patch: Patch, record: Record, error: PatchError) -> Outcome:
    """Note that a patch cannot be applied. Called under PROCESS_LOCK.

    A required patch then blocks its targets.

    Args:
        patch: The patch.
        record: Its record; gets the state ``drifted`` or ``failed``, the reason and the notes.
        error: Why; a :class:`~nrl_patches.errors.DriftedError` means ``drifted``, any other ``failed``.

    Returns:
        The error, with a text to log unless the record has the same state and reason already.
    """
    state = State.DRIFTED if isinstance(error, DriftedError) else State.FAILED
    known = (record.state, record.reason) == (state, str(error))
    notes = []
    record.done = {fix.target for fix in patch.fixes if slot_of(patch.id, fix) or is_rewritten(patch.id, fix)}
    if record.done:
        notes.append(f"still in place, below a third-party patch: {', '.join(sorted(record.done))}")
    record.state, record.reason = state, str(error)
    if patch.required:
        try:
            block(patch, str(error))
        except Exception as obstacle:  # noqa: BLE001 - a target that cannot even be blocked must not end the import
            notes.append(f"its target could not be blocked: {type(obstacle).__name__}: {obstacle}")
    record.notes = tuple(dict.fromkeys((*record.notes, *notes)))
    level = logging.ERROR if patch.required else logging.WARNING
    return Outcome(level, "" if known else f"{state}: {error}", error)


def unapplicable(patch: Patch, status: Status) -> Problem:
    """Return the message that says why a requested patch is not applied.

    Args:
        patch: The patch.
        status: Its status as it is now: ``disabled``, ``not-affected`` or ``not-installed``.
    """
    if status.state is State.DISABLED:
        expected, step = "a patch that is not switched off", "undo that setting, and restart the process"
    elif status.state is State.UNMEASURED:
        expected, step = "a release that was measured", _measure(patch)
    else:
        expected, step = "a release with the defect", f"nothing; NRL_PATCHES_FORCE={patch.id} applies it all the same"
    return Problem(patch.id, expected=expected, found=f"{status.state}: {status.reason}", next_step=step)


def _unmeasured(patch: Patch, decision: Decision) -> Problem:
    edges = " and ".join(f"{name} {edge}" for name, edge in decision.edges.items())
    return Problem(patch.id, f"{edges}, or its code", decision.reason, _measure(patch))


def _measure(patch: Patch) -> str:
    return f"`nrl-patches tripwires {patch.id}` measures it here; NRL_PATCHES_FORCE={patch.id} applies it unmeasured"


def _why(decision: Decision, *, forced: bool) -> str:
    if decision.answer is Answer.YES:
        return decision.reason
    return f"{decision.reason}; {'forced by NRL_PATCHES_FORCE' if forced else 'the guard decided: the defect is there'}"
