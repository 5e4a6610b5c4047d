"""Which patches exist: found by walking the package, never listed by hand."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TypeVar

from nrl_patches.declaration import Defect, Patch
from nrl_patches.errors import DeclarationError, Problem, UndoError

__all__ = ["RETIRED", "Broken", "Registry", "load", "load_defects"]

_DefectT = TypeVar("_DefectT", bound=Defect)

RETIRED: Mapping[str, str] = {}
"""Tombstones: the id of each patch whose file was deleted, and since when and why nobody needs it.

One that names the variable which switched the patch off lets that explain itself as well.
"""


@dataclass(frozen=True)
class Broken:
    """A patch file that could not be loaded.

    Attributes:
        id: The id that the patch would have.
        file: The file.
        error: What went wrong.
    """

    id: str
    file: str
    error: Exception

    @property
    def problem(self) -> Problem:
        """What is wrong, with the file."""
        found = f"that it cannot be loaded: {self.file}: {type(self.error).__name__}: {self.error}"
        return Problem(self.id, "a patch file", found, "install nrl-patches anew; its other patches are applied")

    def __str__(self) -> str:
        """Return the problem."""
        return str(self.problem)


@dataclass(frozen=True)
class Registry:
    """All patches by id, the files that could not be loaded, and the tombstones.

    Attributes:
        patches: The patches, by id, sorted.
        broken: The files that could not be loaded.
        retired: See :data:`RETIRED`.
    """

    patches: Mapping[str, Patch]
    broken: tuple[Broken, ...] = ()
    retired: Mapping[str, str] = field(default_factory=lambda: RETIRED)

    def __iter__(self) -> Iterator[Patch]:
        """Iterate over the patches in the order of their ids."""
        return iter(self.patches.values())

    def find(self, patch_id: str) -> Patch:
        """Return the patch of that id.

        Raises:
            UndoError: There is none, or none that could be loaded.

        Args:
            patch_id: The id, such as ``vllm.radio_layer_scale``.
        """
        if patch_id in self.patches:
            return self.patches[patch_id]
        broken = [str(broken) for broken in self.broken if broken.id == patch_id]
        found = self.retired.get(patch_id, "; ".join(broken) or "no patch of that name")
        step = "`nrl-patches list` shows every id"
        raise UndoError(Problem(patch_id, expected="the id of a patch", found=found, next_step=step))


def load(package: ModuleType | None = None) -> Registry:
    """Import every patch file of a package and return the patches.

    A file that cannot be loaded is reported in the registry: the host's import must survive it, this project's own
    tests must not.

    Args:
        package: Where to look, ``nrl_patches.patches`` by default. Modules and folders whose name begins with an
            underscore hold what several patches share.

    Returns:
        The patches, sorted by id, and the files that could not be loaded.
    """
    if package is None:
        package = importlib.import_module("nrl_patches.patches")
    patches, broken = _load_all(package, "patch", Patch)
    return Registry(patches, broken)


def load_defects(package: ModuleType | None = None) -> tuple[Mapping[str, Defect], tuple[Broken, ...]]:
    """Import every file of a package that declares a defect without a fix.

    Args:
        package: Where to look, ``nrl_patches.defects`` by default.

    Returns:
        The defects by id, sorted, and the files that could not be loaded.
    """
    if package is None:
        package = importlib.import_module("nrl_patches.defects")
    return _load_all(package, "defect", Defect)


def _load_all(package: ModuleType, name: str, kind: type[_DefectT]) -> tuple[dict[str, _DefectT], tuple[Broken, ...]]:
    found = [_load(module, file, package.__name__, name, kind) for module, file in sorted(_modules(package))]
    loaded = {one.id: one for one in found if isinstance(one, kind)}
    return dict(sorted(loaded.items())), tuple(one for one in found if isinstance(one, Broken))


def _load(module: str, file: str, package: str, name: str, kind: type[_DefectT]) -> _DefectT | Broken:
    try:
        return _declared(importlib.import_module(module), name, kind)
    except Exception as error:  # noqa: BLE001 - whatever a file raises, the others must still load
        return Broken(module.removeprefix(f"{package}."), file, error)


def _modules(package: ModuleType) -> Iterator[tuple[str, str]]:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        below = module.name.removeprefix(package.__name__)
        if not module.ispkg and "._" not in below:
            folder = getattr(module.module_finder, "path", "")
            yield module.name, f"{folder}/{module.name.rpartition('.')[2]}.py"


def _declared(module: ModuleType, name: str, kind: type[_DefectT]) -> _DefectT:
    found = getattr(module, name, None)
    what = kind.__name__
    if not isinstance(found, kind):
        raise DeclarationError(f"{module.__file__}: does not define `{name}`, an instance of nrl_patches.{what}")
    if found.module != module.__name__:
        raise DeclarationError(
            f"{module.__file__}: the first argument of {what} must be __name__, not {found.module!r}"
        )
    found.check()
    return found
