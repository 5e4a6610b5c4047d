"""Modules without what trainers wrap around them."""

from __future__ import annotations

from typing import Any

_HELD_AS = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod")
"""The attributes in which torch's checkpoint wrapper, FSDP1 and a compiled module hold what they wrap."""


def inside(module: Any) -> Any:
    """Return what is within the wrappers of a module; of anything else, itself.

    Args:
        module: The module, or None.
    """
    # Once for each is enough, in any order: these wrappers hand on what they are asked for.
    for name in _HELD_AS:
        module = getattr(module, name, module)
    return module
