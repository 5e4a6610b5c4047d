"""Inspect modules without triggering their code.

``importlib.util.LazyLoader`` leaves a module in ``sys.modules`` that is executed by the first attribute access, even
to its ``__dict__``. Other modules resolve unknown names by a ``__getattr__`` that imports.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["is_executing", "is_lazy", "loaded_modules", "namespace", "process_module"]


def namespace(module: ModuleType) -> dict[str, Any]:
    """Return the namespace of a module without executing a lazy one.

    Args:
        module: The module; the result is its ``__dict__`` itself, not a copy.
    """
    held: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return held


def is_lazy(module: ModuleType) -> bool:
    """Whether a module is executed only when an attribute of it is first looked up.

    Args:
        module: The module; ``importlib.util.LazyLoader`` makes lazy ones.
    """
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("importlib.util", "_LazyModule")


def is_executing(name: str) -> bool:
    """Whether the module of that name is being executed, for the first time or by a reload.

    Args:
        name: Its absolute name; False if it is not in ``sys.modules``.
    """
    module = sys.modules.get(name)
    spec = namespace(module).get("__spec__") if isinstance(module, ModuleType) else None
    return bool(getattr(spec, "_initializing", False)) or name in getattr(importlib, "_RELOADING", ())


def loaded_modules(package: str = "") -> list[ModuleType]:
    """Return the values of ``sys.modules`` that are real modules.

    Args:
        package: The top-level package that they belong to; any if empty.
    """
    return [
        module
        for name, module in tuple(sys.modules.items())
        if (not package or name.partition(".")[0] == package) and isinstance(module, ModuleType)
    ]


def process_module() -> ModuleType:
    """Return the module, without a file, through which two copies of this package in a process share state."""
    return sys.modules.setdefault("_nrl_patches_process", ModuleType("_nrl_patches_process"))
