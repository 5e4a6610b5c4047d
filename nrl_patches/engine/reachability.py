"""Whether a call of one callable reaches another, as far as their attributes and closures show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

import wrapt

__all__ = ["callees", "calls_inherited", "overriding", "reaches"]

_DEPTH = 6


def reaches(outer: Any, inner: Any, *, by_name: bool) -> bool:
    """Whether a callable is another one, or refers to it in the way of a wrapper.

    Args:
        outer: What is called.
        inner: What may be reached.
        by_name: Whether ``__wrapped__`` counts: a replacement may set it without calling the original.
    """
    return any(callee is inner for callee in callees(outer, by_name=by_name))


def callees(outer: Any, *, by_name: bool, depth: int = _DEPTH) -> Iterator[Any]:
    """Iterate over a callable and those that it holds; see :func:`reaches`.

    Args:
        outer: The callable. Its ``__func__``, ``func`` and closure are followed.
        by_name: Whether its ``__wrapped__`` is followed too.
        depth: How many steps are followed from it.

    Yields:
        ``outer`` itself, then what it holds, depth first.
    """
    yield outer
    if depth == 0:
        return
    held = [getattr(outer, name, None) for name in ("__func__", "func")]
    if by_name or isinstance(outer, wrapt.BaseObjectProxy):
        held.append(getattr(outer, "__wrapped__", None))
    for cell in getattr(outer, "__closure__", None) or ():
        with suppress(ValueError):  # A cell that is still empty.
            held.append(cell.cell_contents)
    for callee in held:
        if callable(callee):
            yield from callees(callee, by_name=by_name, depth=depth - 1)


def calls_inherited(function: Any, name: str, base: type) -> bool:
    """Whether a method that overrides one of a base class seems to call that: through ``super()`` or by its name.

    Args:
        function: The method. Its code and that of what it holds is searched for the names; nothing is executed.
        name: The name of the overridden method.
        base: The class that defines the overridden method.
    """
    codes = (f.__code__ for f in callees(function, by_name=True) if isinstance(f, FunctionType))
    names = {used for code in codes for used in _names(code)}
    return name in names and not names.isdisjoint({"super", base.__name__})


def overriding(base: type, name: str, function: Any, package: str) -> list[type]:
    """Return the subclasses outside of upstream that override a method of a class without calling it.

    Args:
        base: The class.
        name: The name of the method.
        function: The function that the class has under that name.
        package: The top-level package of upstream, whose own subclasses are left out.
    """
    subclasses: list[type] = list(dict.fromkeys(_subclasses(base)))
    found = []
    for subclass in subclasses:
        raw = vars(subclass).get(name)
        override = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw
        home = getattr(override, "__globals__", {}).get("__name__", package)
        if home.partition(".")[0] == package or reaches(override, function, by_name=True):
            continue
        if not calls_inherited(override, name, base):
            found.append(subclass)
    return found


def _subclasses(base: type) -> Iterator[type]:
    below: list[type] = type.__subclasses__(base)
    for subclass in below:
        yield subclass
        yield from _subclasses(subclass)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
