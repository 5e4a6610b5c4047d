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
        release: Called with the records when the context is left.
        records: The record of each undone patch, by id, shared with other contexts that have undone it.
    """

    release: Callable[[dict[str, Record]], None]
    records: dict[str, Record]

    def __enter__(self) -> Undone:
        """Do nothing: the patches are undone already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Apply the patches again, except those that another open context has undone as well."""
        held = dict(self.records)
        self.records.clear()
        self.release(held)
