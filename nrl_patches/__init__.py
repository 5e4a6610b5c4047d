"""Workarounds for defects of the releases that an RL post-training stack is built on, applied where they are needed.

``import nrl_patches`` is all that a program needs: each patch waits for the module that it repairs and is applied if
the installed release has the defect. ``nrl-patches docs`` has the documentation: how to query what was applied, how to
switch patches off.

The import itself loads next to nothing, see :mod:`nrl_patches.bootstrap`; the names below are looked up when they are
first used.
"""

from nrl_patches import bootstrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nrl_patches.declaration import Patch
    from nrl_patches.defect import Defect, Observation
    from nrl_patches.edits import Edit
    from nrl_patches.engine.activation import Activation
    from nrl_patches.engine.status import State, Status
    from nrl_patches.errors import (
        DeclarationError,
        DriftedError,
        FailedError,
        PatchError,
        RequiredPatchError,
        SettingsError,
        UndoError,
        UnmeasuredError,
    )
    from nrl_patches.guards import mismatch

    _activation: Activation = bootstrap.activation()
    apply = _activation.apply
    register = _activation.register
    status = _activation.status
    undo = _activation.undo

__all__ = [
    "DeclarationError",
    "Defect",
    "DriftedError",
    "Edit",
    "FailedError",
    "Observation",
    "Patch",
    "PatchError",
    "RequiredPatchError",
    "SettingsError",
    "State",
    "Status",
    "UndoError",
    "UnmeasuredError",
    "__version__",
    "activated_by",
    "apply",
    "mismatch",
    "register",
    "status",
    "undo",
]

__version__ = "0.1.0"

_HOMES = {
    "Defect": "defect",
    "Edit": "edits",
    "Observation": "defect",
    "Patch": "declaration",
    "State": "engine.status",
    "Status": "engine.status",
    "mismatch": "guards",
}
"""Where the public names are defined, all others in ``errors``."""


def __getattr__(name: str) -> object:
    """Look up a public name when it is first used."""
    value: object
    if name == "_activation":
        value = bootstrap.activation()
    elif name in {"apply", "register", "status", "undo"}:
        value = getattr(bootstrap.activation(), name)
    elif name in __all__:
        from importlib import import_module  # noqa: PLC0415 - see the module docstring

        value = getattr(import_module(f"nrl_patches.{_HOMES.get(name, 'errors')}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    """List the public names, whether they were looked up already or not."""
    return sorted({*globals(), *__all__})


activated_by = bootstrap.enter(__version__)
"""How the patches came into this process, or into the one it was forked from: ``import``, ``plugin`` (of vLLM),
``ray``, ``startup`` (``nrl-patches run``) or ``multiprocessing``."""
