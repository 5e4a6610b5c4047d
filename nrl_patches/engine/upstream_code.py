"""Recognises upstream code by its source: without importing it, and the same under every Python.

A place is ``module:qualname`` (a function, a class, a table), ``module:qualname[key]`` (the entries under a constant
key of the tables in there) or ``module`` (all of it).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder

__all__ = ["ABSENT", "PLACE", "defined_at", "digest", "module_source", "shown"]

ABSENT = "-"
"""The digest of a place that a release does not have."""

PLACE = re.compile(r"(?P<module>\w+(\.\w+)*)(:(?P<qualname>\w+(\.\w+)*)(\[(?P<key>\w+)\])?)?")

_NOT_CODE = frozenset({"ctx", "kind", "type_comment", "type_params"})  # Some Pythons have them, some not.


def digest(place: str, path: Sequence[str] | None = None) -> str:
    """Return 12 hexadecimal digits that change when the code of a place does, comments and docstrings aside.

    Args:
        place: See the module docstring.
        path: The folders in which the package is looked for; those of this process if None.

    Returns:
        The digits; :data:`ABSENT` where there is no such place, or no source.

    Raises:
        ValueError: The place has another form.
    """
    parts = PLACE.fullmatch(place)
    if parts is None:
        raise ValueError(f"{place!r} is no module:qualname")
    nodes = _found(parts, path)
    if not nodes:
        return ABSENT
    return hashlib.sha256("\n".join(map(shown, nodes)).encode()).hexdigest()[:12]


def defined_at(place: str) -> list[ast.AST]:
    """Return the syntax of what is at a place; an empty list where there is nothing, or the place has no such form.

    Args:
        place: See the module docstring.
    """
    parts = PLACE.fullmatch(place)
    return _found(parts, None) if parts else []


def module_source(module: str, path: Sequence[str] | None = None) -> str | None:
    """Return the source of a module, without importing it or the packages around it; None where there is none.

    Args:
        module: Its full name.
        path: The folders in which its package is looked for; those of this process if None.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if path is None else PathFinder.find_spec(top, path)
    except ValueError:  # It is in sys.modules without a spec.
        return None
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        # transformers puts Path objects there, which the finder passes over.
        spec = PathFinder.find_spec(name, [os.fspath(folder) for folder in spec.submodule_search_locations])
    return _source_of(spec)


def _source_of(spec: ModuleSpec | None) -> str | None:
    # Not the file: the package may be in an archive.
    get_source: Callable[[str], str | None] | None = getattr(spec and spec.loader, "get_source", None)
    if spec is None or get_source is None:
        return None
    try:
        return get_source(spec.name)
    except (ImportError, OSError):
        return None


def _found(parts: re.Match[str], path: Sequence[str] | None) -> list[ast.AST]:
    try:
        source = module_source(parts["module"], path)
        return [] if source is None else _nodes(source, parts["qualname"] or "", parts["key"] or "")
    except SyntaxError:
        return []


def _nodes(source: str, qualname: str, key: str) -> list[ast.AST]:
    found: list[ast.AST] = [_parsed(source)]
    for name in filter(None, qualname.split(".")):
        found = [node for scope in found for node in _defined(scope, name)]
    return [entry for node in found for entry in _entries(node, key)] if key else found


@functools.lru_cache(maxsize=2)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _defined(scope: ast.AST, name: str) -> Iterator[ast.AST]:
    """Yield what a scope binds to a name, in conditional blocks too, but not in the scopes inside it."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == name:
                yield node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                yield node
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from _defined(node, name)


def _entries(node: ast.AST, key: str) -> Iterator[ast.AST]:
    """Yield the values that tables have under a key, from displays and from assignments of single entries."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Dict):
            yield from (value for name, value in zip(inner.keys, inner.values, strict=True) if _is(name, key))
        elif isinstance(inner, ast.Assign):
            targets = [target for target in inner.targets if isinstance(target, ast.Subscript)]
            if any(_is(target.slice, key) for target in targets):
                yield inner.value


def _is(node: ast.AST | None, key: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == key


def shown(node: object, omit: Callable[[ast.AST, str, object], object] = lambda _node, _name, value: value) -> str:
    """Return syntax as text, without what only people read; the same under every Python, which ast.dump is not.

    Args:
        node: A node, a list of nodes, or what else the fields of nodes hold.
        omit: Takes a node, the name of a field and its value, and returns the value that is shown.
    """
    if isinstance(node, list):
        return f"[{','.join(shown(item, omit) for item in node if not _is_docstring(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _NOT_CODE and value not in (None, [])}
    inner = (f"{name}={shown(omit(node, name, value), omit)}" for name, value in fields.items())
    return f"{type(node).__name__}({','.join(inner)})"


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
