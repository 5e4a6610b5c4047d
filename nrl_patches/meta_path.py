"""``sys.meta_path`` with finders that the import system always calls first. Imports almost nothing."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["put_first", "take_away"]

_KEPT_FIRST = "_nrl_patches_finders"  # On the list itself, where a second copy of this package finds it too.


class _MetaPath(list):  # type: ignore[type-arg]
    """``sys.meta_path`` as a list like any other, which the import system iterates from the kept finders on.

    Other packages, such as typeguard, insert their finders in front of ours at any time, and those answer first. Ours
    must then come first without moving in the list: whoever inserts at 0 pops at 0 later. So the order of the list is
    left alone, and only the iteration, which is all that the import system does, begins with the finders kept first.
    """

    def __init__(self, finders: "list[Any]", first: object) -> None:
        super().__init__(finders)
        self._nrl_patches_finders = [first]

    def __iter__(self) -> "Iterator[Any]":
        """Iterate over the finders, each once, those that are kept first before all others."""
        kept = tuple(self._nrl_patches_finders)
        yield from kept
        first = {id(finder) for finder in kept}
        yield from (finder for finder in super().__iter__() if id(finder) not in first)


def put_first(finder: object) -> bool:
    """Let the import system call a finder before all others, whatever happens to ``sys.meta_path``.

    Args:
        finder: The finder.

    Returns:
        True if it was not first before: at the first call, or after ``sys.meta_path`` was replaced.
    """
    # Without a lock: this runs in imports, and those run wherever the garbage collector calls a finalizer.
    there: Any = sys.meta_path
    kept = getattr(there, _KEPT_FIRST, None)
    if there is None or (kept is not None and finder in kept):  # None: the interpreter shuts down.
        return False
    if kept is not None:
        kept.append(finder)
        if finder not in list.__iter__(there):  # Who copies the list copies this.
            there.insert(0, finder)
    else:
        listed = list(there)
        sys.meta_path = _MetaPath(listed if finder in listed else [finder, *listed], finder)
    return True


def take_away(finder: object, heir: object = None) -> None:
    """Remove a finder from ``sys.meta_path``.

    Args:
        finder: The finder.
        heir: A finder, already in the list, that takes its place among those that are called first.
    """
    there: Any = sys.meta_path
    for listed in (getattr(there, _KEPT_FIRST, None), there):
        if listed is None or finder not in list.__iter__(listed):
            continue
        if heir in list.__iter__(listed):
            listed.remove(heir)
            listed[list.index(listed, finder)] = heir
        else:
            listed.remove(finder)
