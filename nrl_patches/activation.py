"""The way of each patch in this process: opt-out, version, guard, application, undo."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType

from nrl_patches import registry as registries
from nrl_patches.affected import Answer, Decision
from nrl_patches.application import apply_fixes, block, drifted, failed, remove_fixes
from nrl_patches.declaration import Fix, Patch
from nrl_patches.errors import DriftedError, PatchError, SettingsError, UndoError, explain_problem
from nrl_patches.hooks import call_when_executed, withdraw
from nrl_patches.installed import find_installed
from nrl_patches.modules import is_executing, is_lazy
from nrl_patches.replacement import PROCESS_LOCK, check_removable, slot_of
from nrl_patches.settings import Settings
from nrl_patches.status import Record, State, Status
from nrl_patches.targets import MismatchError
from nrl_patches.undone import Undone

__all__ = ["Activation", "default_activation"]

logger = logging.getLogger("nrl_patches")

_UNAFFECTED = {Answer.NO: State.NOT_AFFECTED, Answer.NOT_INSTALLED: State.NOT_INSTALLED}


class Activation:
    """Applies the patches of a registry as their targets are imported, and keeps what became of them.

    Args:
        registry: The patches.
        environ: The environment variables; read once, by :meth:`start`.

    Attributes:
        on_change: Called after statuses have changed.
        on_status: Called with what was remembered and what was found instead, whenever :meth:`status` is asked.
    """

    def __init__(self, registry: registries.Registry, environ: Mapping[str, str]) -> None:
        self.registry = registry
        self.on_change: Callable[[], None] = lambda: None
        self.on_status: Callable[[list[Status], dict[str, Status]], None] = lambda _remembered, _found: None
        self.settings = Settings(strict=False, disabled={}, forced=frozenset(), problems=())
        self._environ = environ
        self._records = {patch.id: Record() for patch in registry}
        self._started = False
        self._refused: PatchError | None = None
        self._awaited: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Read the settings and wait for the targets of every patch that is not switched off. Acts once.

        Raises:
            PatchError: Under strict mode, whatever is wrong, at every call; no patch is applied then.
        """
        with PROCESS_LOCK:
            if self._refused is not None:
                raise self._refused
            if self._started:
                return
            self._started = True
        self.settings = Settings.read(self._environ, self.registry)
        try:
            self._report_problems()
            for patch in self.registry:
                if patch.id in self.settings.disabled:
                    self._set(patch, State.DISABLED, self.settings.disabled[patch.id])
                else:
                    self._hook(patch)
        except PatchError as error:
            self._refused = error
            for patch in self.registry:
                self._unhook(patch)
                remove_fixes(patch)
            raise

    def status(self) -> dict[str, Status]:
        """Return the status of every patch as it is now, by id. Imports nothing.

        A target that was imported past the import hooks (by ``exec_module``, or by a finder that somebody put in front)
        is noticed here at the latest, and its patch applied.
        """
        self._catch_up()
        remembered = self.remembered()
        statuses = {patch.id: self._status(patch) for patch in self.registry}
        for broken in self.registry.broken:
            trace = "".join(traceback.format_exception(broken.error))
            statuses[broken.id] = Status(broken.id, State.FAILED, str(broken), (), trace)
        self.on_status(remembered, statuses)
        return dict(sorted(statuses.items()))

    def remembered(self) -> list[Status]:
        """Return every status as of its last change: cheaper than :meth:`status`, and without tracebacks."""
        records = [(patch, self._records[patch.id]) for patch in self.registry]
        return [Status(p.id, r.state, r.reason or f"not decided yet: {r.awaits(p)}", r.notes) for p, r in records]

    def undo(self, *ids: str) -> Undone:
        """Put back exactly what was there before the patches were applied.

        What ``torch.compile`` has traced before stays as it was traced, here and in :meth:`apply`: dynamo puts no guard
        on methods. ``torch._dynamo.reset()`` drops it.

        Args:
            ids: The patches, in any order; all applied ones if none is named.

        Returns:
            A context manager that applies them again when it is left; ignore it to leave them undone.

        Raises:
            UndoError: An id is unknown, another copy of this package applied it, or another party has patched on top;
                nothing is undone then.
        """
        with PROCESS_LOCK:
            named = [self._patch(i) for i in ids or tuple(i for i, record in self._records.items() if record.done)]
            patches = [patch for patch in named if self._records[patch.id].state is not State.DISABLED]
            for patch in patches:
                self._check_own(patch)
                check_removable(patch.id, patch.fixes)
            for patch in patches:
                self._unhook(patch)
                notes = tuple(remove_fixes(patch))
                self._records[patch.id] = Record(State.DISABLED, "undone by nrl_patches.undo", notes)
            self._changed()
        return Undone(self.apply, tuple(patch.id for patch in patches))

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Do without the patches that are off in the process that started this one.

        Args:
            reasons: Why they are off there, by id; ids that this version does not know are none of its business.

        Raises:
            UndoError: Under strict mode, of the first one that cannot be undone; all others are undone.
        """
        obstacles = []
        for patch_id, reason in reasons.items():
            if patch_id in self.registry.patches and self._records[patch_id].state is not State.DISABLED:
                try:
                    self.undo(patch_id)
                except UndoError as obstacle:
                    obstacles.append(obstacle)
                    logger.warning("off in the parent process, but still applied here: %s", obstacle)
                    continue
                where = ", in the parent process"
                self._records[patch_id].reason = f"{reason.removesuffix(where)}{where}"
        self._changed()
        if obstacles and self.settings.strict:
            raise obstacles[0]

    def apply(self, *ids: str) -> None:
        """Apply patches that were undone, now or as soon as their targets are imported.

        Args:
            ids: The patches; all undone ones if none is named. One that a variable switched off stays off.
        """
        for patch_id in ids or tuple(self._records):
            patch = self._patch(patch_id)
            if self._records[patch_id].state is State.DISABLED and patch_id not in self.settings.disabled:
                self._records[patch_id] = Record()
                self._hook(patch)
        self._changed()

    def on_executed(self, patch: Patch, name: str, module: ModuleType) -> None:
        """Apply the fixes of a patch that belong to the module which has just been executed."""
        try:
            self._decide(patch, name, module)
        finally:
            self._changed()

    def _decide(self, patch: Patch, name: str, module: ModuleType) -> None:
        fixes = [fix for fix in patch.fixes if fix.module == name]
        forced = patch.id in self.settings.forced
        try:
            decision = patch.affected.decide(find_installed)
            if decision.answer in _UNAFFECTED and not forced:
                self._set(patch, _UNAFFECTED[decision.answer], decision.reason)
                return
            with PROCESS_LOCK:
                if self._records[patch.id].state is State.DISABLED:
                    return  # Undone by another thread since.
                notes = apply_fixes(patch, fixes, module)
        except MismatchError as mismatch:
            if decision.answer is Answer.UNDECIDED and not forced:
                self._set(patch, State.NOT_AFFECTED, f"{decision.reason}; the guard decided: {mismatch.found}")
            else:
                self._give_up(patch, drifted(patch, mismatch, decision))
        except Exception as error:  # noqa: BLE001 - a fix may raise anything; the host's import must go on
            self._give_up(patch, failed(patch, error))
        else:
            self._applied(patch, fixes, _why(decision, forced=forced), notes)
        self._catch_up()

    def _catch_up(self) -> None:
        for patch_id, name in tuple(self._awaited):
            module = sys.modules.get(name)
            if not isinstance(module, ModuleType) or is_executing(name) or is_lazy(module):
                continue
            self._awaited.discard((patch_id, name))
            patch, record = self.registry.patches[patch_id], self._records[patch_id]
            missing = any(fix.module == name and fix.target not in record.done for fix in patch.fixes)
            if record.state is State.PENDING and missing:
                record.notes += (f"{name} was imported past the import hook, and may have been used before",)
                self.on_executed(patch, name, module)

    def _check_own(self, patch: Patch) -> None:
        record = self._records[patch.id]
        if record.done and not any(slot_of(patch.id, fix) for fix in patch.fixes):
            raise UndoError(
                explain_problem(
                    patch.id,
                    expected="a patch that this copy of nrl_patches applied",
                    found="; ".join((record.reason, *record.notes)),
                    next_step="undo it through that copy",
                )
            )

    def _hook(self, patch: Patch) -> None:
        for name in dict.fromkeys(fix.module for fix in patch.fixes):
            call_when_executed(name, _Callback(self, patch, name))
            self._awaited.add((patch.id, name))

    def _unhook(self, patch: Patch) -> None:
        for name in {fix.module for fix in patch.fixes}:
            withdraw(_Callback(self, patch, name))
            self._awaited.discard((patch.id, name))

    def _status(self, patch: Patch) -> Status:
        record = self._records[patch.id]
        status = Status(patch.id, record.state, record.reason, record.notes, record.traceback)
        if record.state is State.PENDING:
            decision = patch.affected.decide(find_installed)
            if decision.answer in _UNAFFECTED and patch.id not in self.settings.forced:
                return replace(status, state=_UNAFFECTED[decision.answer], reason=decision.reason)
            return replace(status, reason=f"{decision.reason}; {record.awaits(patch)}")
        for fix in patch.fixes if record.state is State.APPLIED else ():
            slot = slot_of(patch.id, fix)
            if slot is not None and slot.intruder is not None:
                if not slot.is_reached:
                    return replace(
                        status, state=State.DRIFTED, reason=f"{fix.target} was replaced since by {slot.intruder}"
                    )
                doubt = "" if slot.is_called else ", which may not call it"
                note = f"{fix.qualname} was wrapped since by {slot.intruder}{doubt}"
                status = replace(status, notes=(*status.notes, note))
        return status

    def _applied(self, patch: Patch, fixes: list[Fix], reason: str, notes: list[str]) -> None:
        record = self._records[patch.id]
        again = all(fix.target in record.done for fix in fixes)
        record.done.update(fix.target for fix in fixes)
        record.notes = tuple(dict.fromkeys((*record.notes, *notes)))
        if len(record.done) == len(patch.fixes):
            self._set(patch, State.APPLIED, reason)
            if not again:
                logger.info("applied %s: %s", patch.id, "; ".join((reason, *record.notes)))

    def _give_up(self, patch: Patch, error: PatchError) -> None:
        record = self._records[patch.id]
        state = State.DRIFTED if isinstance(error, DriftedError) else State.FAILED
        told = (record.state, record.reason) == (state, str(error))
        record.done = {fix.target for fix in patch.fixes if slot_of(patch.id, fix) is not None}
        if record.done:
            record.notes += (f"still in place, under somebody else's patch: {', '.join(sorted(record.done))}",)
        record.traceback = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        self._set(patch, state, str(error))
        if patch.required:
            try:
                block(patch, str(error))
            except Exception as obstacle:  # noqa: BLE001 - a target that cannot even be blocked must not end the import
                record.notes += (f"its target could not be blocked: {type(obstacle).__name__}: {obstacle}",)
        if self.settings.strict:
            raise error
        if not told:
            logger.log(logging.ERROR if patch.required else logging.WARNING, "%s: %s", state, error)

    def _changed(self) -> None:
        with PROCESS_LOCK:
            self.on_change()

    def _set(self, patch: Patch, state: State, reason: str) -> None:
        record = self._records[patch.id]
        record.state, record.reason = state, reason

    def _patch(self, patch_id: str) -> Patch:
        if patch_id in self.registry.patches:
            return self.registry.patches[patch_id]
        found = self.registry.retired.get(patch_id, "no patch of that name")
        raise UndoError(
            explain_problem(
                patch_id, expected="the id of a patch", found=found, next_step="`nrl-patches list` shows every id"
            )
        )

    def _report_problems(self) -> None:
        if self.settings.problems and self.settings.strict:
            raise SettingsError("\n".join(self.settings.problems))
        for problem in self.settings.problems:
            logger.warning("%s", problem)


@functools.cache
def default_activation() -> Activation:
    """Return the one activation of this copy of the package: all its patches, the process's own environment."""
    return Activation(registries.load(), os.environ)


@dataclass(frozen=True)
class _Callback:
    """The hook of one patch for one module; equal to any other of the same, so that it can be withdrawn."""

    activation: Activation
    patch: Patch
    name: str

    def __call__(self, module: ModuleType) -> None:
        self.activation.on_executed(self.patch, self.name, module)


def _why(decision: Decision, *, forced: bool) -> str:
    if decision.answer is Answer.YES:
        return decision.reason
    return f"{decision.reason}; {'forced by NRL_PATCHES_FORCE' if forced else 'the guard decided: the defect is there'}"
