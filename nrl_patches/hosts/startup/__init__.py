"""Interpreters under ``nrl-patches run``: what autowrapt's startup files call; see ``sitecustomize.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import door  # noqa: TID252 - the package has two names

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["startup"]


def startup(_module: ModuleType) -> None:
    """Bring nrl_patches into a process that has just imported a package with a target.

    Args:
        _module: The package.

    Raises:
        Exception: Under strict mode only, whatever is wrong; the package's import fails then.
    """
    door.load("startup")
