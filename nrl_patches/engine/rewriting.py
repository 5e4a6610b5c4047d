"""Rewrites the source of a target in memory: the lines around an edit run as upstream wrote them.

The new function has the globals, closure, defaults, signature and decorators of the old one, and the line numbers of
its file up to the first edit. ``inspect.getsource`` and tracebacks show the lines that run, under a file name that
nobody else has: the real one and a digest of the rewrite. Caches that know code by its file (vLLM's of compiled graphs
does) therefore tell it from upstream's.
"""

from __future__ import annotations

import builtins
import dis
import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from nrl_patches.edits import Edit, Transform, edited
from nrl_patches.engine.compiled_source import compile_function, is_same
from nrl_patches.errors import MismatchError

__all__ = ["Rewrite", "remember"]

_KIND = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)

_REWRITTEN = " [rewritten by nrl_patches: "

_sources: dict[str, list[str]] = {}
"""The lines of every file of which a part was rewritten, by the name that its code has."""


class Rewrite:
    """The build of a fix that edits the source of its target.

    Args:
        edits: What to change.
        only_for_import: Whether a module that was imported without them needs them no longer.
    """

    def __init__(self, edits: Sequence[Edit | Transform], *, only_for_import: bool = False) -> None:
        self.edits = tuple(edits)
        self.only_for_import = only_for_import
        self._done: dict[int, tuple[CodeType, CodeType]] = {}

    def __call__(self, function: Callable[..., Any]) -> FunctionType:
        """Build the rewritten function.

        Args:
            function: The original, decorated or not.

        Returns:
            A new function, in new wrappers if the original is decorated.

        Raises:
            MismatchError: There is no source, it is not that of the running code, an edit does not match, or a
                decorator is none that can be made again.
            TypeError: The edits change the parameters of the function, or of which kind it is.
            NameError: They use a name that is not known where the function is defined.
            SyntaxError: The result is no Python.
        """
        inner = _innermost(function)
        return _redecorated(function, inner, self._rewritten(inner))

    def mismatch(self, function: Callable[..., Any]) -> str | None:
        """Return why a function cannot be rewritten, None if it can; the guard of the fix.

        Args:
            function: The original.
        """
        try:
            self(function)
        except MismatchError as mismatch:
            return str(mismatch)
        return None

    def text(self, text: str) -> str:
        """Return the edited source of a module.

        Args:
            text: Its source.

        Raises:
            MismatchError: An edit does not match.
        """
        return edited(text, self.edits)

    def _rewritten(self, function: FunctionType) -> FunctionType:
        # The guard and then the build ask for the same, and so does a patch that is applied again. By identity, as code
        # that stands in another file may be equal; it is kept, so that no other gets its number.
        old = function.__code__
        if id(old) not in self._done:
            self._done[id(old)] = old, self._recompiled(function)
        return _function(self._done[id(old)][1], function)

    def _recompiled(self, function: FunctionType) -> CodeType:
        lines, first = _source(function)
        running = compile_function("".join(lines), function, _real(function.__code__.co_filename))
        if not is_same(running, function.__code__):
            found = "other code: the file has changed since it was imported, or an import hook changes code"
            raise MismatchError("the source of the running code", found)
        block = "".join(inspect.getblock(lines[first:]))
        new = edited(block, self.edits, first_line=first + 1)
        whole = "".join([*lines[:first], new, *lines[first + len(block.splitlines()) :]])
        file = remember(_real(function.__code__.co_filename), whole, new)
        code = compile_function(whole, function, file)
        _check_kind(code, function.__code__)
        _check_names(code, function)
        return code


def _source(function: FunctionType) -> tuple[list[str], int]:
    """Return the lines of a function's file, and the index of its own first one."""
    file = function.__code__.co_filename
    try:
        lines = _sources.get(file) or inspect.findsource(function)[0]
    except OSError as error:
        raise MismatchError("source text", str(error)) from error
    return lines, function.__code__.co_firstlineno - 1


def remember(file: str, text: str, new: str) -> str:
    """Make rewritten source known to tracebacks and ``inspect``.

    Args:
        file: The real file.
        text: All of its text, as rewritten.
        new: The part of it that the name of the file is to depend on.

    Returns:
        The file name that the code has to have.
    """
    name = f"{file}{_REWRITTEN}{hashlib.sha256(new.encode()).hexdigest()[:12]}]"
    _sources[name] = text.splitlines(keepends=True)
    # Without a modification time, linecache never compares an entry with the file system.
    linecache.cache[name] = (len(text), None, _sources[name], name)
    return name


def _real(file: str) -> str:
    return file.partition(_REWRITTEN)[0]


def _innermost(function: Callable[..., Any]) -> FunctionType:
    inner: Any = function
    while (below := _below(inner)) is not None:
        inner = below
    if not isinstance(inner, FunctionType):
        raise MismatchError("a Python function", f"a {type(inner).__name__}")
    return inner


def _below(outer: Any) -> Any:
    """Return the function that a decorator lies around, None if it is none."""
    wrapped = getattr(outer, "__wrapped__", None)
    if wrapped is not None or not isinstance(outer, FunctionType) or "<locals>" not in outer.__qualname__:
        return wrapped
    # Some decorators do without functools.wraps; theirs is the one function of another module.
    held = [content for content in map(_content, outer.__closure__ or ()) if isinstance(content, FunctionType)]
    foreign = [function for function in held if function.__module__ != outer.__module__]
    return foreign[0] if len(foreign) == 1 else None


def _redecorated(outer: Any, inner: FunctionType, new: FunctionType) -> FunctionType:
    """Copy the wrappers around a function, so that they call another one; nothing is decorated again."""
    if outer is inner:
        return new
    wrapped = _below(outer)
    cells = outer.__closure__ or () if isinstance(outer, FunctionType) else ()
    if not any(_content(cell) is wrapped for cell in cells):
        raise MismatchError("decorators whose wrapper is a closure over the function", f"a {type(outer).__name__}")
    below = _redecorated(wrapped, inner, new)
    closure = tuple(CellType(below) if _content(cell) is wrapped else cell for cell in cells)
    # All functions of one decorator share their code; the mark of this package is told from a copied one by it.
    copy = _copied(outer, outer.__code__.replace(), closure)
    if hasattr(outer, "__wrapped__"):
        copy.__wrapped__ = below  # type: ignore[attr-defined]
    return copy


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # Still empty.
        return None


def _copied(old: FunctionType, code: CodeType, closure: tuple[CellType, ...]) -> FunctionType:
    new = FunctionType(code, old.__globals__, old.__name__, old.__defaults__, closure)
    new.__kwdefaults__ = old.__kwdefaults__
    new.__dict__.update(old.__dict__)
    for name in ("__module__", "__qualname__", "__doc__", "__annotations__", "__type_params__"):
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    return new


def _function(code: CodeType, old: FunctionType) -> FunctionType:
    cells = dict(zip(old.__code__.co_freevars, old.__closure__ or (), strict=True))
    owner = _class_of(old)
    if "__class__" in code.co_freevars and owner is not None:  # An edit may be the first to call super().
        cells.setdefault("__class__", CellType(owner))
    missing = [name for name in code.co_freevars if name not in cells]
    if missing:
        raise NameError(f"the edits use {', '.join(missing)} of an enclosing scope, which the original does not")
    return _copied(old, code, tuple(cells[name] for name in code.co_freevars))


def _class_of(function: FunctionType) -> type | None:
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split(".")[:-1]:
        found = getattr(found, name, None)
    return found if isinstance(found, type) and not isinstance(found, ModuleType) else None


def _check_kind(new: CodeType, old: CodeType) -> None:
    def shape(code: CodeType) -> tuple[object, ...]:
        names = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
        names += bool(code.co_flags & inspect.CO_VARKEYWORDS)
        return code.co_argcount, code.co_posonlyargcount, code.co_varnames[:names], code.co_flags & _KIND

    if shape(new) != shape(old):
        raise TypeError(f"the edits change the parameters of {old.co_name}, or whether it is a generator or coroutine")


def _check_names(code: CodeType, function: FunctionType) -> None:
    known = {*function.__globals__, *vars(builtins), *_globals_of(function.__code__)}
    unknown = sorted(set(_globals_of(code)) - known)
    if unknown:
        raise NameError(f"the edits use {', '.join(unknown)}, which {function.__module__} does not have")


def _globals_of(code: CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)
