"""Compiles a function anew, in the file that it stands in."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import CodeType, FunctionType

from nrl_patches.errors import MismatchError

__all__ = ["compile_function", "is_same"]


def compile_function(text: str, function: FunctionType, file: str) -> CodeType:
    """Compile the source of a function, with the scopes, imports and future statements around it.

    All of the file is compiled and none of it executed: how a function is compiled depends on what is around it, its
    class (private names), its enclosing functions (free variables), even the names that its module imports.

    Args:
        text: The text of the whole file.
        function: What it has, or had, at the line where the function begins.
        file: The file name that the code gets.

    Returns:
        The code of the function alone.

    Raises:
        MismatchError: There is no such function at that line.
        SyntaxError: It is no Python.
    """
    wanted = function.__code__.co_name, function.__code__.co_firstlineno
    found = [code for code in _codes(_compiled(text, file)) if (code.co_name, code.co_firstlineno) == wanted]
    if len(found) != 1:
        raise MismatchError(f"the definition of {function.__qualname__} in line {wanted[1]}", "other lines there")
    return found[0]


def is_same(first: CodeType, second: CodeType) -> bool:
    """Whether two pieces of code do the same, wherever they stand.

    Args:
        first: One of them.
        second: The other.
    """
    names = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags")
    if any(getattr(first, name) != getattr(second, name) for name in names):
        return False
    pairs = list(zip(first.co_consts, second.co_consts, strict=False))
    return len(first.co_consts) == len(second.co_consts) and all(
        is_same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else (type(a), a) == (type(b), b)
        for a, b in pairs
    )


# The guard of a rewrite and its build compile the same two texts.
@functools.lru_cache(maxsize=2)
def _compiled(text: str, file: str) -> CodeType:
    return compile(text, file, "exec", dont_inherit=True)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
