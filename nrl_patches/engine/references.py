"""Find the references to a callable: all that would keep calling the old one after a replacement."""

from __future__ import annotations

import gc
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nrl_patches.engine.module_state import loaded_modules, namespace
from nrl_patches.engine.targets import MARK

__all__ = ["Holder", "Holders", "find_copies", "find_holders"]

_TRANSIENT = (types.FrameType, types.GeneratorType, types.CoroutineType)


@dataclass(frozen=True, slots=True)
class Holder:
    """A module or class, and the attribute of it that is the callable."""

    owner: Any
    name: str


@dataclass(slots=True)
class Holders:
    """The references that a search found.

    Attributes:
        reachable: Namespaces in which the callable can be replaced.
        unreachable: A phrase for each other object that refers to the callable: a closure, a partial, …
        used_gc: Whether the search used the lists of the garbage collector.
    """

    reachable: list[Holder] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    used_gc: bool = False


def find_copies(wanted: Any, package: str = "") -> list[Holder]:
    """Find the modules that refer to a callable by any name: its home, and whatever did ``from module import name``.

    Args:
        wanted: The callable, compared by identity.
        package: The top-level package whose modules are looked at; all if empty.

    Returns:
        One holder per module and name.
    """
    modules = {id(namespace(module)): module for module in loaded_modules(package)}
    # By id: a comprehension over the callable itself would refer to it by a cell, and find that.
    key = id(wanted)
    return [holder for module in modules.values() for holder in _named(module, namespace(module), key)]


def find_holders(
    wanted: Any,
    *,
    ignore: tuple[type, ...] = (),
    exclude: Any = None,
    cells: Sequence[types.CellType] = (),
    owner: Any = None,
) -> Holders:
    """Find every object that refers to a callable.

    References from outside of modules are found in one pass over the lists of the garbage collector (which do not have
    objects frozen by ``gc.freeze``). That takes 20 ms with torch and transformers imported, and 70 ms with vLLM.

    Args:
        wanted: The callable, compared by identity.
        ignore: Types whose instances are the caller's own bookkeeping.
        exclude: One more object that is known to refer to it.
        cells: Cells that are known to, too.
        owner: A class that is known to refer to it; its other references are searched for.

    Returns:
        The modules and classes in which the callable can be replaced, and a phrase for each other object.
    """
    modules = {id(namespace(module)) for module in loaded_modules()}
    key = id(wanted)
    found = Holders(find_copies(wanted), used_gc=True)
    unresolved: list[dict[Any, Any]] = []
    others: list[types.CellType] = []
    known = {id(cell) for cell in cells}
    for referrer in gc.get_referrers(wanted):
        if id(referrer) in known:
            continue
        if isinstance(referrer, dict):
            if id(referrer) not in modules:
                unresolved.append(referrer)
        elif isinstance(referrer, types.CellType):
            others.append(referrer)
        elif referrer is not exclude and not isinstance(referrer, (*_TRANSIENT, *ignore)):
            found.unreachable.append(_describe(referrer))
    found.unreachable += _closures_over(others)
    classes = {id(_own_namespace(owner)): owner} if isinstance(owner, type) else {}
    classes |= _classes_of([held for held in unresolved if id(held) not in classes])
    for held in unresolved:
        if id(held) in classes:
            found.reachable += _named(classes[id(held)], held, key)
        else:
            names = sorted(str(name) for name, value in held.items() if id(value) == key)
            found.unreachable.append(f"a dict under {', '.join(names)}")
    return found


def _named(owner: Any, held: dict[Any, Any], key: int) -> list[Holder]:
    # In C rather than in bytecode: with vLLM there are some 200,000 names, and hardly any is the callable's.
    if key not in map(id, list(held.values())):
        return []
    return [Holder(owner, name) for name, value in list(held.items()) if id(value) == key]


def _classes_of(namespaces: list[dict[Any, Any]]) -> dict[int, type]:
    if not namespaces:
        return {}
    owners = (r for r in gc.get_referrers(*namespaces) if isinstance(r, type))
    return {id(_own_namespace(owner)): owner for owner in owners}


def _own_namespace(owner: type) -> object:
    # vars() of a class is a read-only view; the dict itself, which is what refers to the callable, lies behind it.
    return gc.get_referents(vars(owner))[0]


def _closures_over(cells: list[types.CellType]) -> list[str]:
    """Name the functions that close over the callable, except replacements of this package."""
    closures = [r for r in gc.get_referrers(*cells) if isinstance(r, tuple)] if cells else []
    owners = [r for r in gc.get_referrers(*closures) if isinstance(r, types.FunctionType)] if closures else []
    keys = {id(closure) for closure in closures}
    return [
        f"the closure of {owner.__module__}.{owner.__qualname__}"
        for owner in owners
        if id(owner.__closure__) in keys and not hasattr(owner, MARK)
    ]


def _describe(referrer: object) -> str:
    if isinstance(referrer, types.MethodType):
        return f"a bound method of a {type(referrer.__self__).__name__}"
    return f"a {type(referrer).__name__}"
