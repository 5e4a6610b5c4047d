"""Workarounds for defects of the releases that an RL post-training stack is built on, applied where they are needed.

``import nrl_patches`` is all that a program needs: each patch waits for the module that it repairs and is applied if
the installed release has the defect. README.md tells how to ask what was applied and how to switch patches off.
"""

import nrl_patches.run_as_module as _  # noqa: F401 - before everything else, see there
from nrl_patches.activation import default_activation
from nrl_patches.children import activation_path
from nrl_patches.declaration import Observation, Patch
from nrl_patches.errors import (
    DeclarationError,
    DriftedError,
    FailedError,
    PatchError,
    RequiredPatchError,
    SettingsError,
    UndoError,
)
from nrl_patches.process import join
from nrl_patches.status import State, Status
from nrl_patches.targets import objection_unless

__all__ = [
    "DeclarationError",
    "DriftedError",
    "FailedError",
    "Observation",
    "Patch",
    "PatchError",
    "RequiredPatchError",
    "SettingsError",
    "State",
    "Status",
    "UndoError",
    "__version__",
    "activated_by",
    "apply",
    "objection_unless",
    "status",
    "undo",
]

__version__ = "0.1.0"

activated_by = activation_path()
"""How the patches came into this process, or into the one it was forked from: ``import``, ``plugin`` (of vLLM),
``ray``, ``startup`` (``nrl-patches run``) or ``multiprocessing``."""

_activation = default_activation()
apply = _activation.apply
status = _activation.status
undo = _activation.undo
_activation.start()
join(_activation, __version__)
