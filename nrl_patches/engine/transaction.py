"""Apply the fixes of one patch, all or none, and describe why that failed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from nrl_patches.declaration import Patch
from nrl_patches.engine.affected import Decision
from nrl_patches.engine.installed_files import changed_on_disk
from nrl_patches.engine.module_bodies import EXECUTED, check_rewritten, is_rewritten
from nrl_patches.engine.slots import PROCESS_LOCK, forget_if_gone, install, is_installed, slot_of, uninstall
from nrl_patches.engine.status import Record
from nrl_patches.engine.targets import check, locate
from nrl_patches.errors import DriftedError, FailedError, MismatchError, Problem, RequiredPatchError, UndoError
from nrl_patches.fixes import Build, Fix

__all__ = ["apply_fixes", "block", "check_own", "drifted", "failed", "remove_fixes"]


def apply_fixes(patch: Patch, fixes: Sequence[Fix], module: ModuleType) -> list[str]:
    """Install the fixes of a patch that belong to one module, after all of their guards have agreed.

    Args:
        patch: The patch.
        fixes: Those of its fixes whose targets are in the module.
        module: The module, executed.

    Returns:
        Notes for the user; see :func:`nrl_patches.engine.slots.install`.

    Raises:
        MismatchError: A target is not what its fix was written for. No fix of this patch is left in place, but for the
            statements of a module that was executed.
        Exception: Whatever a guard or a build raises. No fix of this patch is left in place.
    """
    notes: list[str] = []
    callables = [fix for fix in fixes if fix.qualname]
    with PROCESS_LOCK:
        for fix in callables:
            forget_if_gone(fix, module)
        uninstall(_blocked(patch), patch.fixes)
        try:
            for fix in fixes:
                if not fix.qualname:
                    check_rewritten(patch.id, fix)
            sites = [(fix, locate(module, fix)) for fix in callables]
            missing = [(fix, site) for fix, site in sites if not is_installed(patch.id, fix, site)]
            for fix, site in missing:
                check(fix, site)
            for fix, site in missing:
                notes += install(patch.id, fix, site)
        except Exception:
            with suppress(UndoError):  # A fix below a third-party patch stays, and the status says so.
                uninstall(patch.id, patch.fixes)
            raise
        elsewhere = {site.mark.copy for fix, site in sites if site.mark and slot_of(patch.id, fix) is None}
    return [*notes, *(f"applied by the copy of nrl_patches in {copy}" for copy in sorted(elsewhere))]


def check_own(patch: Patch, record: Record) -> None:
    """Check that it was this copy of the package that applied a patch.

    Args:
        patch: The patch.
        record: Its record in this process.

    Raises:
        UndoError: It was another copy.
    """
    if record.done and not any(slot_of(patch.id, fix) or is_rewritten(patch.id, fix) for fix in patch.fixes):
        raise UndoError(
            Problem(
                patch.id,
                expected="a patch that this copy of nrl_patches applied",
                found="; ".join((record.reason, *record.notes)),
                next_step="undo it through that copy",
            )
        )


def remove_fixes(patch: Patch) -> list[str]:
    """Restore what was there before the patch.

    Args:
        patch: The patch; its fixes and what blocks its targets are removed.

    Returns:
        Notes for the user; see :func:`nrl_patches.engine.slots.uninstall`.

    Raises:
        UndoError: A third party has patched on top; nothing is changed then.
    """
    with PROCESS_LOCK:
        stays = [f"{fix.module}: {EXECUTED}" for fix in patch.fixes if not fix.qualname and is_rewritten(patch.id, fix)]
        return [*stays, *uninstall(patch.id, patch.fixes), *uninstall(_blocked(patch), patch.fixes)]


def block(patch: Patch, message: str) -> None:
    """Make every target of a required patch that can be found raise ``RequiredPatchError`` when it is called.

    Args:
        patch: The patch, which could not be applied.
        message: The message of the error.
    """
    with PROCESS_LOCK:
        for fix in patch.fixes:
            if fix.qualname and fix.module in sys.modules:
                try:
                    site = locate(sys.modules[fix.module], fix)
                except MismatchError:
                    continue  # There is nothing to call.
                install(_blocked(patch), replace(fix, build=_blocker(message)), site)


def drifted(patch: Patch, mismatch: MismatchError, decision: Decision) -> DriftedError:
    """Return the error that says how the target differs from what the fix was written for.

    Args:
        patch: The patch.
        mismatch: The difference.
        decision: What the installed versions say.
    """
    found = f"{mismatch.found} ({decision.reason})"
    modules = dict.fromkeys(fix.module for fix in patch.fixes)
    changed = [changed_on_disk(module, patch.affected.distributions) for module in modules]
    on_disk = [phrase for phrase in changed if phrase]
    step = _step(patch)
    if on_disk:
        step = f"install the distribution again, and remove what changes its files (NeMo RL's images do); {step}"
    found = "; ".join((found, *on_disk))
    return DriftedError(Problem(patch.id, expected=mismatch.expected, found=found, next_step=step))


def failed(patch: Patch, error: Exception) -> FailedError:
    """Return the error that names what a fix raised, with that as its cause.

    Args:
        patch: The patch.
        error: What was raised; the message has the file and the line.
    """
    found = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f"fix {frames[-1].filename}:{frames[-1].lineno}, or report it; " if frames else ""
    message = Problem(patch.id, expected="its fix to be installed", found=found, next_step=f"{where}{_step(patch)}")
    failure = FailedError(message)
    failure.__cause__ = error
    return failure


def _blocked(patch: Patch) -> str:
    # A separate layer: the blocked target of a required patch must not be mistaken for the patched one.
    return f"{patch.id} (blocked)"


def _blocker(message: str) -> Build:
    def build(_original: Callable[..., Any]) -> Callable[..., Any]:
        def blocked(*_args: Any, **_kwargs: Any) -> Any:
            raise RequiredPatchError(message)

        return blocked

    return build


def _step(patch: Patch) -> str:
    return f"`nrl-patches explain {patch.id}` describes the defect; {patch.opt_out}=1 switches the patch off"
