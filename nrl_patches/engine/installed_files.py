"""Whether somebody has changed the installed file of a module, by the hashes that its wheel came with."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nrl_patches.engine.distributions import import_package

__all__ = ["changed_on_disk"]


def changed_on_disk(module: str, distributions: Sequence[str]) -> str | None:
    """Return which installed file is not the one that was installed, and of what, as a phrase.

    Args:
        module: The name of a module that has been imported.
        distributions: The names of those that it may belong to.

    Returns:
        None if the file is as its distribution's ``RECORD`` says, or if there is no file or no ``RECORD``.
    """
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or package not in map(import_package, distributions):
        return None
    try:
        owner, expected = next(_recorded(Path(file)), (None, ""))
        found = base64.urlsafe_b64encode(hashlib.sha256(Path(file).read_bytes()).digest()).decode().rstrip("=")
    except (OSError, ValueError):
        return None
    if owner is None or expected == found:
        return None
    return f"{file} is not the file that {owner} installed (its RECORD has another hash): it was changed on disk"


def _recorded(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the distributions that installed a file, as text, and the hash that they had for it."""
    # Only files are read here, as this may be called under a lock.
    for distribution in importlib.metadata.distributions():
        folder = Path(str(distribution.locate_file("")))
        if file.is_relative_to(folder):
            path = file.relative_to(folder).as_posix()
            for line in (distribution.read_text("RECORD") or "").splitlines():
                name, _, rest = line.partition(",sha256=")
                if name == path:
                    yield f"{distribution.name} {distribution.version}", rest.partition(",")[0]
