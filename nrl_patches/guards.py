"""Helpers for the guards of patch files: compare what is at a target with what a fix relies on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

__all__ = ["mismatch"]


def mismatch(function: Callable[..., Any], *, parameters: str = "", attributes: str = "") -> str | None:
    """Compare a function with what a fix relies on; the usual body of a guard.

    Decorators that set ``__wrapped__`` are looked through, see :func:`inspect.unwrap`.

    Args:
        function: The callable found at the target.
        parameters: Names, separated by spaces, that its signature must have.
        attributes: Names, separated by spaces, that its code must read or write as attributes or globals
            (``co_names`` of its code object).

    Returns:
        None if all of them are there, otherwise a phrase that names the missing ones, such as ``has no parameter x``.
    """
    innermost = inspect.unwrap(function)
    if not isinstance(innermost, FunctionType):
        return "is no Python function"
    for wanted, there, what in (
        (parameters, inspect.signature(innermost).parameters, "has no parameter"),
        (attributes, innermost.__code__.co_names, "does not use"),
    ):
        missing = [name for name in wanted.split() if name not in there]
        if missing:
            return f"{what} {', '.join(missing)}"
    return None
