"""Applies patches as the modules of their targets are imported, and remembers what became of each."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from nrl_patches.declaration import Patch
from nrl_patches.engine import registry as registries
from nrl_patches.engine.decision import decide
from nrl_patches.engine.import_hooks import call_when_executed, edit_when_executed, withdraw
from nrl_patches.engine.log import tell
from nrl_patches.engine.module_bodies import rewrite
from nrl_patches.engine.module_state import is_executing, is_lazy
from nrl_patches.engine.outcome import DECIDED, Outcome, give_up, settle
from nrl_patches.engine.settings import Settings
from nrl_patches.engine.slots import PROCESS_LOCK
from nrl_patches.engine.status import Record, State
from nrl_patches.engine.transaction import drifted, failed
from nrl_patches.errors import MismatchError, PatchError
from nrl_patches.fixes import Fix

__all__ = ["Applier"]


class Applier:
    """What happens to patches at imports; :class:`~nrl_patches.engine.activation.Activation` is what users control.

    Args:
        registry: The patches.

    Attributes:
        on_change: Called after statuses have changed.
    """

    def __init__(self, registry: registries.Registry) -> None:
        self.registry = registry
        self.settings = Settings(strict=False, disabled={}, forced=frozenset(), problems=())
        self.on_change: Callable[[], None] = lambda: None
        self._records = {patch.id: Record() for patch in registry}
        self._awaited: set[tuple[str, str]] = set()

    def on_executing(self, patch: Patch, fix: Fix, module: ModuleType, text: str | None) -> str | None:
        """Rewrite the statements of a module that is about to be executed, if the patch is to be applied.

        Args:
            patch: The patch.
            fix: One of its fixes, whose target is the module.
            module: The module.
            text: Its source, with what other patches have changed in it; None if it has none.

        Returns:
            The source to execute; None if there is none.

        Raises:
            PatchError: Under strict mode, that the patch has drifted or failed.
        """
        try:
            decision = decide(patch)
            off = self._records[patch.id].state is State.DISABLED
            if off or (decision.answer in DECIDED and patch.id not in self.settings.forced):
                return text
            return rewrite(patch.id, fix, module, text)
        except MismatchError as mismatch:
            error: PatchError = drifted(patch, mismatch, decision)
        except Exception as raised:  # noqa: BLE001 - as in on_executed
            error = failed(patch, raised)
        # At once: without its rewrite, the module may fail to execute.
        self._report(*self._settle(patch, lambda record: give_up(patch, record, error)))
        return text

    def on_executed(self, patch: Patch, name: str, module: ModuleType) -> None:
        """Apply the fixes of a patch that belong to the module which has just been executed.

        Args:
            patch: The patch.
            name: The absolute name of the module.
            module: The module, as ``sys.modules`` holds it.

        Raises:
            PatchError: Under strict mode, that the patch has drifted or failed.
        """
        try:  # It looks for packages, and so is not done under the lock.
            decision = decide(patch)
        except Exception as error:  # noqa: BLE001 - the finders in sys.meta_path may raise anything
            failure = failed(patch, error)
            outcome, record = self._settle(patch, lambda r: give_up(patch, r, failure))
        else:
            forced = patch.id in self.settings.forced
            fixes = [fix for fix in patch.fixes if fix.module == name]
            outcome, record = self._settle(patch, lambda r: settle(patch, r, fixes, module, decision, forced=forced))
        self._report(outcome, record)
        self._catch_up()

    def _settle(self, patch: Patch, how: Callable[[Record], Outcome]) -> tuple[Outcome, Record]:
        with PROCESS_LOCK:
            record = self._records[patch.id]
            # Another thread may have undone it since.
            outcome = Outcome() if record.state is State.DISABLED else how(record)
            self.on_change()
        return outcome, record

    def _report(self, outcome: Outcome, record: Record) -> None:
        # Not under the lock: handlers have locks of their own, and a traceback reads source files.
        if outcome.error is not None:
            cause = outcome.error.__cause__
            record.traceback = "".join(traceback.format_exception(cause)) if cause else ""
            if self.settings.strict:
                raise outcome.error
        if outcome.text:
            tell(outcome.level, outcome.text)

    def _catch_up(self) -> None:
        for patch_id, name in tuple(self._awaited):
            module = sys.modules.get(name)
            if not isinstance(module, ModuleType) or is_executing(name) or is_lazy(module):
                continue
            with PROCESS_LOCK:
                self._awaited.discard((patch_id, name))
                patch, record = self.registry.patches[patch_id], self._records[patch_id]
                missing = any(fix.module == name and fix.target not in record.done for fix in patch.fixes)
                bypassed = record.state is State.PENDING and missing
                if bypassed:
                    record.notes += (f"{name} was imported past the import hook, and may have been used before",)
            if bypassed:
                self.on_executed(patch, name, module)

    def _hook(self, patch: Patch) -> None:
        for name in dict.fromkeys(fix.module for fix in patch.fixes):
            call_when_executed(name, _Callback(self, patch, name))
            with PROCESS_LOCK:
                if self._records[patch.id].state is not State.DISABLED:
                    self._awaited.add((patch.id, name))
        for fix in patch.fixes:
            if not fix.qualname:
                edit_when_executed(fix.module, _BodyEditor(self, patch, fix))

    def _hook_again(self, ids: Sequence[str]) -> None:
        for patch_id in ids:
            self._hook(self.registry.patches[patch_id])
        with PROCESS_LOCK:  # What waits for its import has changed as well.
            self.on_change()

    def _unhook(self, patch: Patch) -> None:
        for name in {fix.module for fix in patch.fixes}:
            withdraw(_Callback(self, patch, name))
            self._awaited.discard((patch.id, name))
        for fix in patch.fixes:
            withdraw(_BodyEditor(self, patch, fix))


@dataclass(frozen=True)
class _Callback:
    """The hook of one patch for one module; equal to any other of the same, so that it can be withdrawn."""

    applier: Applier
    patch: Patch
    name: str

    def __call__(self, module: ModuleType) -> None:
        self.applier.on_executed(self.patch, self.name, module)


@dataclass(frozen=True)
class _BodyEditor:
    """The same before a module is executed, for a fix whose target is the module."""

    applier: Applier
    patch: Patch
    fix: Fix

    def __call__(self, module: ModuleType, text: str | None) -> str | None:
        return self.applier.on_executing(self.patch, self.fix, module, text)
