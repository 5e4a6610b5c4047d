"""What ``nrl_patches.undo`` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import final

from nrl_patches.engine.status import Record

__all__ = ["Undone"]


@final
@dataclass(frozen=True)
class Undone:
    """Patches that were undone, as a context manager that applies them again when it is left.

    Attributes:
        release: Called with the records when it is left.
        records: What is kept of each patch while it is undone, by id; whoever else has undone it holds the same.
    """

    release: Callable[[dict[str, Record]], None]
    records: dict[str, Record]

    def __enter__(self) -> Undone:
        """Do nothing: the patches are undone already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Apply the patches again, but for those that somebody else has undone as well and not let go of."""
        held = dict(self.records)
        self.records.clear()
        self.release(held)
