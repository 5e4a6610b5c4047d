"""Which code a measurement is about: a patch file and the helpers that it imports, without what only people read.

A changed comment, docstring or ``affected`` does not make a measurement stale; a changed probe, guard or fix does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from nrl_patches.declaration import Patch

__all__ = ["fingerprint"]

_PACKAGE = "nrl_patches.patches"


def fingerprint(patch: Patch) -> str:
    """Return 12 hexadecimal digits that change when the code of a patch does; the same under every Python."""
    digest = hashlib.sha256()
    for module in sorted(_modules(patch.module)):
        digest.update("\n".join(_code(_source(module))).encode())
    return digest.hexdigest()[:12]


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"{module} has no source file")
    return Path(spec.origin).read_text(encoding="utf-8")


def _modules(module: str) -> set[str]:
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _helpers(_source(name))
    return found


def _helpers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
            if node.module.rpartition(".")[2].startswith("_"):  # type: ignore[union-attr] # it starts with a package
                yield str(node.module)
            else:
                yield from (f"{node.module}.{name.name}" for name in node.names if name.name.startswith("_"))


def _code(source: str) -> Iterator[str]:
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        declaration = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Patch"
        if isinstance(node, ast.Expr | ast.Call) and (docstring or declaration):
            dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(source.splitlines(), start=1):
        if number not in dropped and line.strip() and not line.lstrip().startswith("#"):
            yield line
