"""The life cycle of a patch in this process: opt-out, version, guard, application, undo."""

from __future__ import annotations

import functools
import logging
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from nrl_patches import contributed
from nrl_patches.declaration import Patch
from nrl_patches.engine import registry as registries
from nrl_patches.engine.applier import Applier
from nrl_patches.engine.drift import status_of
from nrl_patches.engine.import_hooks import call_when_bypassed, keep_first
from nrl_patches.engine.log import tell
from nrl_patches.engine.outcome import unapplicable
from nrl_patches.engine.settings import Settings
from nrl_patches.engine.slots import PROCESS_LOCK, check_removable
from nrl_patches.engine.status import TROUBLE, Record, State, Status
from nrl_patches.engine.transaction import check_own, remove_fixes
from nrl_patches.engine.undone import Undone
from nrl_patches.errors import PatchError, Problem, SettingsError, UndoError

__all__ = ["Activation", "default_activation"]


class Activation(Applier):
    """Applies the patches of a registry as their targets are imported, and keeps their status.

    Args:
        registry: The patches.
        environ: The environment variables; read once, by :meth:`start`.

    Attributes:
        on_change: Called after statuses have changed.
        on_status: Called with what was remembered and what was found instead, whenever :meth:`status` is asked.
    """

    def __init__(self, registry: registries.Registry, environ: Mapping[str, str]) -> None:
        super().__init__(registry)
        self.on_status: Callable[[list[Status], dict[str, Status]], None] = lambda _remembered, _found: None
        self._environ = environ
        self._started = False
        self._refused: PatchError | None = None

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
        if self.settings.enabled:
            call_when_bypassed(self._catch_up)
        try:
            self._report_problems()
            for patch in self.registry:
                self._hook_unless_disabled(patch)
        except PatchError as error:
            self._refused = error
            for patch in self.registry:
                self._unhook(patch)
                remove_fixes(patch)
            raise

    def register(self, package: str | ModuleType) -> None:
        """Add the patch files of another party's package, here and in every process that this one starts.

        Its patches are gated, applied, reported and undone like all others; their ids begin with the first part of the
        package's name and a slash. Acts once per package. A distribution need not call this: it declares its package by
        entry points of the group ``nrl_patches.patches``.

        Args:
            package: The package, or its full name. Folders in it need no ``__init__``.

        Raises:
            PatchError: Under strict mode, whatever is wrong with it.
        """
        name = package if isinstance(package, str) else package.__name__
        registry = registries.with_package(self.registry, name)
        with PROCESS_LOCK:
            new = [patch for patch in registry if patch.id not in self._records]
            self._records |= {patch.id: Record() for patch in new}
            self.registry = registry
        inherited = contributed.registered()
        if name not in inherited and self._environ is os.environ:
            os.environ[contributed.VARIABLE] = ",".join([*inherited, name])
        if not self._started or not self.settings.enabled:
            return
        known = self.settings.problems
        self.settings = Settings.read(self._environ, registry)
        self._report_problems(known)
        for patch in new:
            self._hook_unless_disabled(patch)
        with PROCESS_LOCK:
            self.on_change()

    def status(self) -> dict[str, Status]:
        """Return the status of every patch as it is now, by id. Imports nothing.

        A target that was imported past the import hooks (by ``exec_module``, or while ``sys.meta_path`` was
        replaced) is noticed here at the latest, and its patch applied.
        """
        keep_first()
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
        return self._undo(ids, "undone by nrl_patches.undo")

    def _undo(self, ids: Sequence[str], reason: str) -> Undone:
        with PROCESS_LOCK:
            everything = [i for i, record in self._records.items() if record.done or record.holds]
            named = [self.registry.find(patch_id) for patch_id in dict.fromkeys(ids or everything)]
            held = [patch for patch in named if patch.id not in self.settings.disabled]
            patches = [patch for patch in held if self._records[patch.id].state is not State.DISABLED]
            for patch in patches:
                check_own(patch, self._records[patch.id])
                check_removable(patch.id, patch.fixes)
            for patch in patches:
                self._unhook(patch)
                self._records[patch.id] = Record(State.DISABLED, reason, tuple(remove_fixes(patch)))
            records = {patch.id: self._records[patch.id] for patch in held}
            for record in records.values():
                record.holds += 1
            self.on_change()
        return Undone(self._release, records)

    def _release(self, records: Mapping[str, Record]) -> None:
        with PROCESS_LOCK:
            for record in records.values():
                record.holds -= 1
            # One that was applied meanwhile has another record now.
            free = [i for i, record in records.items() if not record.holds and self._records[i] is record]
            self._records |= {patch_id: Record() for patch_id in free}
        self._hook_again(free)

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
                where = ", in the parent process"
                try:
                    self._undo([patch_id], f"{reason.removesuffix(where)}{where}")
                except UndoError as obstacle:
                    obstacles.append(obstacle)
                    tell(logging.WARNING, f"off in the parent process, but still applied here: {obstacle}")
        if obstacles and self.settings.strict:
            raise obstacles[0]

    def apply(self, *ids: str) -> None:
        """Apply patches that were undone, now or as soon as their targets are imported, and try again what went wrong.

        A patch that has drifted or failed is retried, since the cause may no longer exist. A warning says why a patch
        that is named here cannot be applied.

        Args:
            ids: The patches; all that were undone, have drifted or failed if none is named. One that a variable
                switched off stays off.

        Raises:
            UndoError: An id is unknown.
            PatchError: Under strict mode, whatever goes wrong.
        """
        self._catch_up()
        patches = [self.registry.find(patch_id) for patch_id in ids] or list(self.registry)
        for patch in patches:
            record, found = self._records[patch.id], self._status(patch)
            undone = found.state is State.DISABLED and patch.id not in self.settings.disabled
            again = undone or found.state in TROUBLE
            with PROCESS_LOCK:
                if again and self._records[patch.id] is record:
                    self._records[patch.id] = Record()
            if again:
                self._hook_again([patch.id])
            elif ids and found.state not in {State.APPLIED, State.PENDING}:
                tell(logging.WARNING, unapplicable(patch, found))

    def _hook_unless_disabled(self, patch: Patch) -> None:
        if patch.id in self.settings.disabled:
            self._records[patch.id] = Record(State.DISABLED, self.settings.disabled[patch.id])
        else:
            self._hook(patch)

    def _status(self, patch: Patch) -> Status:
        return status_of(patch, self._records[patch.id], forced=patch.id in self.settings.forced)

    def _report_problems(self, known: Sequence[Problem] = ()) -> None:
        problems = [problem for problem in self.settings.problems if problem not in known]
        if problems and self.settings.strict:
            raise SettingsError("\n".join(map(str, problems)))
        for problem in problems:
            tell(logging.WARNING, problem)


@functools.cache
def default_activation() -> Activation:
    """Return the one activation of this copy of the package: all its patches, the process's own environment."""
    return Activation(registries.load_everything(), os.environ)
