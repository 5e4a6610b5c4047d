"""Compiles the source of one function as if the rest of its file stood around it."""

from __future__ import annotations
import __future__

import ast
from collections.abc import Iterator
from functools import reduce
from operator import or_
from types import CodeType, FunctionType
from typing import Any

from nrl_patches.errors import MismatchError

__all__ = ["compile_function", "is_same"]

_FUTURE = reduce(or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names))


def compile_function(block: str, function: FunctionType, file: str) -> CodeType:
    """Compile the source of a function, with the lines, columns, private names and free variables that it has.

    Args:
        block: Its source, decorators included, at the indentation that it has in its file.
        function: What it is, or was, the source of.
        file: The file name that the code gets.

    Returns:
        The code of the function alone.

    Raises:
        MismatchError: The source does not define the function.
        SyntaxError: It is no Python.
    """
    old = function.__code__
    # The decorators are compiled but never executed: only the code of the function is taken from the result.
    scopes = _scopes(function, block)
    tree = ast.parse("".join([*scopes, block]), file)
    ast.increment_lineno(tree, old.co_firstlineno - 1 - len(scopes))
    module = compile(tree, file, "exec", flags=old.co_flags & _FUTURE, dont_inherit=True)
    found = [
        code for code in _codes(module) if (code.co_name, code.co_firstlineno) == (old.co_name, old.co_firstlineno)
    ]
    if len(found) != 1:
        raise MismatchError(f"the definition of {function.__qualname__}", "other lines in its place")
    code: Any = found[0]
    return code.replace(co_qualname=getattr(old, "co_qualname", "")) if hasattr(old, "co_qualname") else code  # type: ignore[no-any-return]


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


def _scopes(function: FunctionType, block: str) -> list[str]:
    """Return the lines that stand for the scopes around a function: one for its free variables, one for its class."""
    line = next(line for line in block.splitlines() if line.strip())
    if line == line.lstrip():
        return []
    _, *outer, _ = ("", *function.__qualname__.split("."))
    free = [name for name in function.__code__.co_freevars if name != "__class__"]
    # A function scope where there was none would mark the code as nested; an `if` alone may indent a function.
    nested = bool(free) or outer[-1:] == ["<locals>"]
    scopes = [f"def {function.__name__}_scope({', '.join(free)}):\n" if nested else "if True:\n"]
    if outer and outer[-1] != "<locals>":
        scopes.append(f" class {outer[-1]}:\n")
    return scopes


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
