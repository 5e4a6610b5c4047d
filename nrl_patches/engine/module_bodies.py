"""Executes a module with edited source: for a fix whose target is the statements of a module, not a function in it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from nrl_patches.engine.module_state import namespace
from nrl_patches.engine.rewriting import Rewrite, remember
from nrl_patches.errors import MismatchError
from nrl_patches.fixes import Fix

__all__ = ["EXECUTED", "BodyEditor", "ImportedError", "check_rewritten", "execute", "is_rewritten", "rewrite"]

BodyEditor = Callable[[ModuleType, "str | None"], "str | None"]
"""Takes a module that is about to be executed and its source, None if it has none; returns the source to execute."""

EXECUTED = "the statements of a module that was executed cannot be undone; a new process has upstream's"

_MARK = "__nrl_patches_rewritten__"


class ImportedError(MismatchError):
    """A module was imported before its rewrite, which nothing but its import needs."""


def execute(loader: Any, module: ModuleType, editors: Sequence[BodyEditor]) -> bool:
    """Execute a module with the source that editors return.

    Args:
        loader: Its real loader.
        module: The module, not executed yet.
        editors: Called one after the other, each with the text that the one before it returned.

    Returns:
        Whether it was executed; False where the loader has no source, or no editor changed it.

    Raises:
        Exception: Whatever the editors or the module raise.
    """
    name = namespace(module)["__name__"]
    text = new = _source(loader, name)
    for edit in editors:
        new = edit(module, new)
    if new is None or new == text:
        return False
    file = remember(namespace(module).get("__file__") or f"<{name}>", new, new)
    exec(compile(new, file, "exec", dont_inherit=True), namespace(module))  # noqa: S102 - upstream's, edited
    return True


def rewrite(patch_id: str, fix: Fix, module: ModuleType, text: str | None) -> str:
    """Return the source of a module with a fix in it, and note in the module that it has it.

    Args:
        patch_id: The patch.
        fix: One of its fixes, whose target is a module.
        module: The module.
        text: Its source; None if it has none.

    Raises:
        MismatchError: An edit does not match, or there is no source.
        SyntaxError: The result is no Python.
        TypeError: The fix is no rewrite.
    """
    if not isinstance(fix.build, Rewrite):
        raise TypeError(f"{fix.target} is a module, which can only be rewritten")
    if text is None:
        raise MismatchError(f"the source of {fix.module}", "none, as where only bytecode is installed")
    new = fix.build.text(text)
    compile(new, fix.module, "exec", dont_inherit=True)
    # With the spec, which a reload replaces: the mark must not outlive what it was set for.
    namespace(module)[_MARK] = (namespace(module).get("__spec__"), (*_marks(module), patch_id))
    return new


def is_rewritten(patch_id: str, fix: Fix) -> bool:
    """Whether the module that is the target of a fix was executed with it.

    Args:
        patch_id: The patch.
        fix: One of its fixes.
    """
    module = sys.modules.get(fix.module)
    return isinstance(module, ModuleType) and patch_id in _marks(module)


def check_rewritten(patch_id: str, fix: Fix) -> None:
    """Check that the module that is the target of a fix was executed with it.

    Args:
        patch_id: The patch.
        fix: One of its fixes.

    Raises:
        ImportedError: It was not, and needs it no longer.
        MismatchError: It was not.
    """
    if is_rewritten(patch_id, fix):
        return
    if isinstance(fix.build, Rewrite):
        if fix.build.only_for_import:
            raise ImportedError(f"the import of {fix.module} to fail", "it was imported without the patch")
        with suppress(OSError):  # Without source, it could not be rewritten either.
            fix.build.text(inspect.getsource(sys.modules[fix.module]))
    raise MismatchError(
        f"{fix.module} to be executed with its rewrite",
        "it was executed without: imported before this package was, or past its import hook, or has no source",
    )


def _marks(module: ModuleType) -> tuple[str, ...]:
    spec, ids = namespace(module).get(_MARK, (None, ()))
    return ids if spec is namespace(module).get("__spec__") else ()


def _source(loader: Any, name: str) -> str | None:
    get_source: Callable[[str], str | None] | None = getattr(loader, "get_source", None)
    try:
        return get_source(name) if get_source is not None else None
    except (ImportError, OSError):
        return None
