"""Looking at modules without making them do anything.

``importlib.util.LazyLoader`` leaves a module in ``sys.modules`` that is executed by the first look at an attribute,
even at its ``__dict__``. Others answer unknown names through a ``__getattr__`` that imports.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["is_executing", "is_lazy", "loaded_modules", "namespace", "process_module"]


def namespace(module: ModuleType) -> dict[str, Any]:
    """Return what the module holds by now."""
    held: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return held


def is_lazy(module: ModuleType) -> bool:
    """Whether the module waits for a look at an attribute to be executed."""
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("importlib.util", "_LazyModule")


def is_executing(name: str) -> bool:
    """Whether the module of that name is being executed, for the first time or again."""
    module = sys.modules.get(name)
    spec = namespace(module).get("__spec__") if isinstance(module, ModuleType) else None
    return bool(getattr(spec, "_initializing", False)) or name in getattr(importlib, "_RELOADING", ())


def loaded_modules() -> list[ModuleType]:
    """Return the modules in ``sys.modules`` that are modules."""
    return [module for module in tuple(sys.modules.values()) if isinstance(module, ModuleType)]


def process_module() -> ModuleType:
    """Return the one place that two copies of this package in a process share: a module that no file has."""
    return sys.modules.setdefault("_nrl_patches_process", ModuleType("_nrl_patches_process"))
