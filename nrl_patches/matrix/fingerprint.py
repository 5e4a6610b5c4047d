"""Which code a measurement is about: a patch file and what it imports of its package, without what only people read.

A changed comment, docstring, link or ``affected`` makes no measurement stale; a changed probe, guard or fix does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Callable, Iterator

from nrl_patches.defect import Defect
from nrl_patches.engine.upstream_code import shown

__all__ = ["fingerprint"]

_FOR_PEOPLE = frozenset({"affected", "upstream", "opt_out", "relies_on", "victims", "advice", "measured"})


def fingerprint(patch: Defect) -> str:
    """Return 12 hexadecimal digits that change when the code of a patch does; the same under every Python.

    Args:
        patch: The patch; its file and every shared module that this imports count.
    """
    digest = hashlib.sha256()
    for tree in _trees(patch.module).values():
        digest.update(shown(tree, _without_declaration).encode())
    return digest.hexdigest()[:12]


def _trees(module: str) -> dict[str, ast.AST]:
    """The syntax of a module and of what it imports from the patches around it, by name, sorted."""
    own = module.startswith(("nrl_patches.patches.", "nrl_patches.defects."))
    packages = ("nrl_patches.patches.", "nrl_patches.defects.") if own else (f"{module.partition('.')[0]}.",)
    found: dict[str, ast.AST] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        source = None if name in found else _source(name)
        if source is not None:
            found[name] = ast.parse(source)
            todo += [i for i in _imported(found[name], name) if i.startswith(packages)]
    return dict(sorted(found.items()))


def _source(module: str) -> str | None:
    """The text of a module; None for packages, and for names that are no modules."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    # Not the file: the package may be in an archive.
    get_source: Callable[[str], str | None] | None = getattr(spec and spec.loader, "get_source", None)
    if spec is None or get_source is None or spec.submodule_search_locations is not None:
        return None
    return get_source(spec.name)


def _imported(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = f"{'.' * node.level}{node.module or ''}"
            origin = importlib.util.resolve_name(relative, module.rpartition(".")[0])
            yield from (origin, *(f"{origin}.{name.name}" for name in node.names))


def _without_declaration(node: ast.AST, name: str, value: object) -> object:
    if (
        name == "keywords"
        and isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"Patch", "Defect"}
    ):
        return [keyword for keyword in node.keywords if keyword.arg not in _FOR_PEOPLE]
    return value
