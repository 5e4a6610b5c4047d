"""What became of a patch in this process, as a user sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from nrl_patches.declaration import Patch

__all__ = ["TROUBLE", "Record", "State", "Status"]


class State(str, enum.Enum):
    """What became of a patch, in one word."""

    PENDING = "pending"
    APPLIED = "applied"
    NOT_INSTALLED = "not-installed"
    NOT_AFFECTED = "not-affected"
    DISABLED = "disabled"
    UNMEASURED = "unmeasured"
    DRIFTED = "drifted"
    FAILED = "failed"

    __str__ = str.__str__


TROUBLE = frozenset({State.UNMEASURED, State.DRIFTED, State.FAILED})
"""What a user must know of: the patch may be needed, and is not there."""


@dataclass(frozen=True)
class Status:
    """What became of one patch in this process.

    Attributes:
        id: The patch.
        state: One word.
        reason: The sentence behind it: which version, which variable, what was found.
        notes: What a user should know beside it: other parties on the same target, copies out of reach.
        traceback: Of the exception, where there was one.
    """

    id: str
    state: State
    reason: str
    notes: tuple[str, ...] = ()
    traceback: str = ""

    def __str__(self) -> str:
        """Return the status as one line."""
        return f"{self.id}: {self.state} ({'; '.join((self.reason, *self.notes))})"


@dataclass
class Record:
    """The status of a patch while it changes.

    Attributes:
        done: The targets that carry its fixes.
        holds: By how many calls of undo it is undone.
    """

    state: State = State.PENDING
    reason: str = ""
    notes: tuple[str, ...] = ()
    traceback: str = ""
    done: set[str] = field(default_factory=set)
    holds: int = 0

    def awaits(self, patch: Patch) -> str:
        """Return what a pending patch waits for, as a phrase.

        Args:
            patch: The patch that this is the record of.
        """
        modules = sorted({fix.module for fix in patch.fixes if fix.target not in self.done})
        return f"waits for the import of {', '.join(modules)}"
