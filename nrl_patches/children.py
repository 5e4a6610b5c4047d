"""How the patches come into the processes of a job: which path brought them here, and how they reach children."""

from __future__ import annotations

from nrl_patches.modules import process_module

__all__ = ["activation_path"]


def activation_path() -> str:
    """Return the word for what brought nrl_patches into this process first; see ``nrl_patches_startup``."""
    path: str = vars(process_module()).setdefault("path", "import")
    return path
