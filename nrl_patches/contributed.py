"""Which installed distributions contribute patch files, read from their metadata without importing anything.

A distribution declares that by entry points of the group ``nrl_patches.patches``. The name of each is a top-level
package that has targets, the value is the package of the patch files::

    [project.entry-points."nrl_patches.patches"]
    vllm = "nemo_rl_patches"
    ray = "nemo_rl_patches"

Imports nothing beyond what an interpreter has loaded at its start, since ``import nrl_patches`` calls this:
``importlib.metadata`` alone takes ten times as long.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GROUP", "VARIABLE", "Contribution", "contributions", "owner_of", "registered"]

GROUP = "nrl_patches.patches"

VARIABLE = "NRL_PATCHES_PACKAGES"
"""Names packages of patch files that no distribution declares; :func:`nrl_patches.register` adds to it."""

_METADATA = (".dist-info", ".egg-info")
_LONGEST = 2**16  # Bytes of an entry_points.txt.


class Contribution:
    """One entry point.

    Attributes:
        owner: What the ids of its patches begin with: the name of the distribution, as an identifier.
        package: The package of the patch files.
        target: The top-level package whose import makes them needed.
    """

    __slots__ = ("owner", "package", "target")

    def __init__(self, owner: str, package: str, target: str) -> None:
        self.owner, self.package, self.target = owner, package, target


def contributions(path: "Sequence[str] | None" = None) -> "list[Contribution]":
    """Return what the distributions on a path contribute; where two have one name, the first counts.

    Args:
        path: The folders; ``sys.path`` if None.
    """
    found: dict[str, list[Contribution]] = {}
    for folder in sys.path if path is None else path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - pathlib takes 4 ms
        except OSError:  # An archive, or nothing.
            continue
        for name in sorted(name for name in names if name.endswith(_METADATA)):
            text = _read(f"{folder or '.'}{os.sep}{name}{os.sep}entry_points.txt")
            if f"[{GROUP}]" in text:
                owner = owner_of(name.partition("-")[0])
                found.setdefault(owner, list(_parsed(text, owner)))
    return [contribution for owner in sorted(found) for contribution in found[owner]]


def owner_of(distribution: str) -> str:
    """Return what the ids of a distribution's patches begin with.

    Args:
        distribution: Its name, in any spelling.
    """
    return distribution.lower().replace("-", "_").replace(".", "_")


def registered() -> "list[str]":
    """Return the packages that the environment variable names, each once."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _parsed(text: str, owner: str) -> "list[Contribution]":
    inside, found = False, []
    for line in text.splitlines():
        line = line.strip()  # noqa: PLW2901
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            target, _, package = (part.strip() for part in line.partition("="))
            found.append(Contribution(owner, package.partition(":")[0].partition("[")[0].strip(), target))
    return found


def _read(file: str) -> str:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(descriptor, _LONGEST).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
