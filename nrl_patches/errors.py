"""Every exception that nrl_patches raises, and the form of its messages."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DeclarationError",
    "DriftedError",
    "FailedError",
    "MismatchError",
    "PatchError",
    "Problem",
    "RequiredPatchError",
    "SettingsError",
    "UndoError",
    "UnmeasuredError",
]


class PatchError(RuntimeError):
    """Base of all errors of this package.

    Deliberately not an ImportError: hosts wrap optional imports in ``try: … except ImportError``, which must not
    swallow an error of strict mode.
    """


class DeclarationError(PatchError):
    """A patch file has an invalid declaration; the message names the file."""


class SettingsError(PatchError):
    """An environment variable has an invalid value (raised under strict mode only)."""


class DriftedError(PatchError):
    """The target is not what the fix was written for (raised under strict mode only)."""


class FailedError(PatchError):
    """The fix raised (raised under strict mode only); the cause is the original exception."""


class RequiredPatchError(PatchError):
    """A call reached a target whose patch declares itself required and could not be applied."""


class UndoError(PatchError):
    """A patch cannot be undone, for example because a third party has patched on top of it."""


class UnmeasuredError(PatchError):
    """Nobody has measured whether this release has the defect (raised under strict mode only)."""


class MismatchError(Exception):
    """The target is not what the fix was written for; users see it as a :class:`DriftedError`.

    Attributes:
        expected: What the fix needs, as a phrase.
        found: What is there, as a phrase.
    """

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}; found {found}")
        self.expected = expected
        self.found = found


@dataclass(frozen=True)
class Problem:
    """The content of every warning and error of this package.

    Attributes:
        subject: What it is about: a patch id, an environment variable, a file.
        expected: What should have been there.
        found: What was there.
        next_step: What the reader can do now.
    """

    subject: str
    expected: str
    found: str
    next_step: str

    def __str__(self) -> str:
        """Return the message."""
        return f"{self.subject}: expected {self.expected}; found {self.found}; next step: {self.next_step}"
