"""The source of functions that fixes of this package were put around."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any


def written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function whose source says what a function does.

    A fix that calls what it replaces has a source of its own, which tells nothing of upstream's; one that rewrites it
    has the source that runs.

    Args:
        function: The function, with or without fixes and decorators.

    Returns:
        The function within those, or the outermost one that was rewritten.
    """
    function = inspect.unwrap(function)
    while isinstance(function, FunctionType) and function.__globals__.get("__name__", "").startswith("nrl_patches."):
        held = [cell.cell_contents for cell in function.__closure__ or ()]
        replaced = [below for below in held if getattr(below, "__qualname__", None) == function.__qualname__]
        if len(replaced) != 1:
            break
        function = inspect.unwrap(replaced[0])
    return function
