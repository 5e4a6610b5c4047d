"""What a patch does to one target: replace a callable, or rewrite its source in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Build", "Fix", "Guard"]

Build = Callable[[Callable[..., Any]], Callable[..., Any]]
Guard = Callable[[Callable[..., Any]], "str | None"]


@dataclass(frozen=True)
class Fix:
    """One changed target of a patch.

    Attributes:
        target: ``module:qualname`` of what is replaced, or ``module`` for a rewrite of a module's own statements.
        build: Takes the callable found there and returns the one that takes its place: a plain function that torch's
            compiler can trace. For the target ``module``, a :class:`~nrl_patches.engine.rewriting.Rewrite`.
        guard: Takes the callable found there; returns None if it is the code that ``build`` was written for, else a
            phrase that names the difference.
    """

    target: str
    build: Build
    guard: Guard

    @property
    def module(self) -> str:
        """The name of the module whose import makes the target reachable."""
        return self.target.partition(":")[0]

    @property
    def qualname(self) -> str:
        """The path of the target inside its module; empty if it is the module."""
        return self.target.partition(":")[2]
