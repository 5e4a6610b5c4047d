"""What ``nrl_patches.undo`` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import final

__all__ = ["Undone"]


@final
@dataclass(frozen=True)
class Undone:
    """Patches that were undone, as a context manager that applies them again when it is left."""

    apply: Callable[..., None]
    ids: tuple[str, ...]

    def __enter__(self) -> Undone:
        """Do nothing: the patches are undone already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Apply the patches again."""
        if self.ids:
            self.apply(*self.ids)
