"""Edits of upstream source text: what a patch file says, and how it is matched."""

from __future__ import annotations

import ast
import difflib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nrl_patches.errors import MismatchError

__all__ = ["Edit", "Transform", "edited"]


@dataclass(frozen=True)
class Edit:
    """Whole lines of upstream source, and what takes their place.

    Both texts are dedented, and blank lines around them dropped; the new lines get the indentation of the old ones.
    Spaces at the end of a line do not count, everything else does, comments included.

    Attributes:
        old: The lines to look for. They must be there exactly once.
        new: The lines instead; empty to delete the old ones.
    """

    old: str
    new: str


Transform = Callable[[Any], ast.AST]
"""Takes the syntax of the target (a function definition, or a module) and returns what takes its place.

It raises a :class:`~nrl_patches.errors.MismatchError` where it does not find what it was written for. Comments are
lost, and lines are counted anew from the first one.
"""


def edited(text: str, edits: Sequence[Edit | Transform], *, first_line: int = 0) -> str:
    """Apply edits to source text, one after the other.

    Args:
        text: The source of a function, at any indentation, or of a module.
        edits: What to change; each finds the result of those before it.
        first_line: The line in its file at which the function begins; 0 if the text is that of a module.

    Returns:
        The new source, at the same indentation.

    Raises:
        MismatchError: The old lines of an edit are not there, or more than once.
        Exception: Whatever a transformation raises.
    """
    for edit in edits:
        if isinstance(edit, Edit):
            text = _replaced(text, edit, first_line or 1)
        else:
            text = _transformed(text, edit, whole=not first_line)
    return text


def _replaced(text: str, edit: Edit, first_line: int) -> str:
    lines, old = text.splitlines(), _lines(edit.old)
    found = list(_places(lines, old))
    if len(found) != 1:
        wanted = f"these lines exactly once:\n{_indented(old)}\n"
        raise MismatchError(wanted, _nearest(lines, old, first_line) if not found else f"them {len(found)} times")
    ((at, indentation),) = found
    new = [f"{indentation}{line}" if line else line for line in _lines(edit.new)]
    return "\n".join([*lines[:at], *new, *lines[at + len(old) :]]) + "\n"


def _places(lines: list[str], old: list[str]) -> Iterator[tuple[int, str]]:
    """Yield where the old lines are, and by how much they are indented there."""
    for at, line in enumerate(lines[: len(lines) - len(old) + 1]):
        indentation = line.rstrip().removesuffix(old[0])
        here = lines[at : at + len(old)]
        wanted = [f"{indentation}{line}".rstrip() for line in old]
        if not indentation.strip() and [line.rstrip() for line in here] == wanted:
            yield at, indentation


def _nearest(lines: list[str], old: list[str], first_line: int) -> str:
    """Describe how the most similar lines differ from the old ones."""
    windows = [lines[at : at + len(old)] for at in range(max(1, len(lines) - len(old) + 1))]
    wanted = "\n".join(line.strip() for line in old)
    matcher = difflib.SequenceMatcher(b=wanted, autojunk=False)

    def likeness(at: int) -> float:
        matcher.set_seq1("\n".join(line.strip() for line in windows[at]))
        return matcher.ratio() if matcher.real_quick_ratio() > 0 else 0.0

    best = max(range(len(windows)), key=likeness)
    there = textwrap.dedent("\n".join(windows[best])).splitlines()
    diff = list(difflib.unified_diff(old, there, "expected", "found", lineterm="", n=1))[2:]
    return f"no such lines; the nearest begin in line {first_line + best}:\n{_indented(diff)}\n"


def _transformed(text: str, transform: Transform, *, whole: bool) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    indentation = first[: len(first) - len(first.lstrip())]
    module = ast.parse(textwrap.dedent(text))
    new = transform(module if whole else module.body[0])
    return textwrap.indent(ast.unparse(ast.fix_missing_locations(new)) + "\n", indentation)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in textwrap.dedent(text).strip("\n").rstrip().splitlines()]


def _indented(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")
