"""Locate the target of a fix, and check that it is the code that the fix was written for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import wrapt

from nrl_patches.engine.module_state import namespace
from nrl_patches.errors import MismatchError
from nrl_patches.fixes import Fix

__all__ = [
    "MARK",
    "MISSING",
    "Mark",
    "Site",
    "check",
    "describe",
    "locate",
    "mark_of",
]

MISSING: Any = object()
MARK = "__nrl_patches__"


class Mark(NamedTuple):
    """What every replacement carries, so that a second copy of this package recognises it.

    Attributes:
        copy: The directory of the copy of this package that made it.
        ids: The patches in it, innermost first.
        pristine: What was there before the first of them.
        code: Of the replacement itself: ``functools.wraps`` copies a mark to functions that it does not belong to.
    """

    copy: str
    ids: tuple[str, ...]
    pristine: Callable[..., Any]
    code: CodeType


def mark_of(function: object) -> Mark | None:
    """Return the mark of this package on a callable, None if it carries none of its own.

    Args:
        function: Any object.
    """
    mark = getattr(function, MARK, None)
    return Mark(*mark) if mark is not None and mark.code is getattr(function, "__code__", None) else None


@dataclass(frozen=True, slots=True)
class Site:
    """Where a target is.

    Attributes:
        owner: The module or class that the last name of the target belongs to.
        name: That last name.
        raw: What the owner's own namespace holds under it; ``MISSING`` if the owner inherits it.
        function: The callable itself.
        binding: ``staticmethod`` or ``classmethod`` if it is one, None if not.
    """

    owner: Any
    name: str
    raw: Any
    function: Callable[..., Any]
    binding: type | None

    @property
    def mark(self) -> Mark | None:
        """The mark of this package on the callable, None if it carries none of its own."""
        return mark_of(self.function)


def locate(module: ModuleType, fix: Fix) -> Site:
    """Find the target of a fix in its module.

    Raises:
        MismatchError: There is nothing under that name, or nothing that can be called.

    Args:
        module: The module, executed.
        fix: A fix whose target is in that module.

    Returns:
        The site; a ``staticmethod`` or ``classmethod`` is unwrapped to its function.
    """
    try:
        if fix.qualname.partition(".")[0] not in namespace(module):
            raise AttributeError(f"module {fix.module} does not define it")  # noqa: TRY301 - as wrapt would
        owner, name, found = wrapt.resolve_path(module, fix.qualname)
    except AttributeError as error:
        raise MismatchError(f"{fix.target} to exist", f"{error}") from error
    binding = type(found) if isinstance(found, (staticmethod, classmethod)) else None
    function = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
    if not callable(function):
        raise MismatchError(f"{fix.target} to be callable", f"a {type(found).__name__}")
    return Site(owner, name, vars(owner).get(name, MISSING), function, binding)


def check(fix: Fix, site: Site) -> None:
    """Ask the guard of a fix about the callable that was there before this package touched it.

    Raises:
        MismatchError: The guard objects.

    Args:
        fix: The fix.
        site: Where its target is, see :func:`locate`.
    """
    function = site.mark.pristine if site.mark else site.function
    objection = fix.guard(function)
    if objection is not None:
        found = f"{describe(function)}: {objection}"
        raise MismatchError(f"{fix.target} to be the code that the fix was written for", found)


def describe(function: object) -> str:
    """Return what people call a callable: its module and qualified name.

    Args:
        function: Any object; a wrapt proxy is described by its wrapper, an object without a name by its type.
    """
    if isinstance(function, wrapt.BaseObjectProxy):
        wrapper = getattr(function, "_self_wrapper", None)
        return f"a wrapt {type(function).__name__} with {describe(wrapper)}"
    name = getattr(function, "__qualname__", None)
    home = getattr(function, "__globals__", {}).get("__name__") or getattr(function, "__module__", "?")
    return f"{home}.{name}" if name else f"a {type(function).__name__}"
