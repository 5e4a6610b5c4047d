"""Which patches exist: found by walking the package, never listed by hand."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from nrl_patches import contributed
from nrl_patches.declaration import Patch
from nrl_patches.defect import Defect
from nrl_patches.errors import DeclarationError, Problem, UndoError

__all__ = ["RETIRED", "Broken", "Registry", "load", "load_defects", "load_everything", "with_package"]

_DefectT = TypeVar("_DefectT", bound=Defect)

RETIRED: Mapping[str, str] = {}
"""Tombstones: the id of each patch whose file was deleted, and since when and why it is no longer needed.

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
        owner = self.id.partition("/")[0] if "/" in self.id else "nrl-patches"
        return Problem(self.id, "a patch file", found, f"reinstall {owner}; all other patches are applied")

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
        packages: The packages of other parties that patches come from, by the beginning of their ids.
    """

    patches: Mapping[str, Patch]
    broken: tuple[Broken, ...] = ()
    retired: Mapping[str, str] = field(default_factory=lambda: RETIRED)
    packages: Mapping[str, str] = field(default_factory=dict)

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


def load_everything() -> Registry:
    """Return the patches of this package and of all others: of distributions that contribute some, and registered ones.

    What another party contributes can break nothing: it is loaded after this package's own patches, and what cannot be
    loaded is reported like a broken file.
    """
    registry = load()
    for owner, package in _contributed():
        registry = with_package(registry, package, owner)
    return registry


def with_package(registry: Registry, package: str, owner: str = "") -> Registry:
    """Return a registry with the patch files of another party's package.

    Args:
        registry: What there is.
        package: The full name of the package; folders in it need no ``__init__``.
        owner: What the ids begin with; the first part of the package's name if empty.
    """
    owner = owner or contributed.owner_of(package.partition(".")[0])
    if registry.packages.get(owner) == package:
        return registry
    try:
        loaded, broken = _load_all(importlib.import_module(package), "patch", Patch, owner)
    except Exception as error:  # noqa: BLE001 - another party's package may raise anything
        loaded, broken = {}, (Broken(f"{owner}/*", package, error),)
    taken = registry.packages.get(owner)
    if taken is not None:
        conflict = DeclarationError(f"{package}: the ids of {taken} begin with {owner}/ already")
        loaded, broken = {}, (Broken(f"{owner}/*", package, conflict),)
    return Registry(
        {**registry.patches, **loaded},
        (*registry.broken, *broken),
        registry.retired,
        {**registry.packages, **({} if taken else {owner: package})},
    )


def _contributed() -> Iterator[tuple[str, str]]:
    declared = contributed.contributions()
    yield from dict.fromkeys((contribution.owner, contribution.package) for contribution in declared)
    yield from (("", package) for package in contributed.registered())


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


def _load_all(
    package: ModuleType, name: str, kind: type[_DefectT], owner: str = ""
) -> tuple[dict[str, _DefectT], tuple[Broken, ...]]:
    found = [_load(m, file, package.__name__, name, kind, owner) for m, file in sorted(_modules(package))]
    loaded = {one.id: one for one in found if isinstance(one, kind)}
    return dict(sorted(loaded.items())), tuple(one for one in found if isinstance(one, Broken))


def _load(module: str, file: str, package: str, name: str, kind: type[_DefectT], owner: str) -> _DefectT | Broken:
    patch_id = module.removeprefix(f"{package}.")
    patch_id = f"{owner}/{patch_id}" if owner else patch_id
    try:
        found = _declared(importlib.import_module(module), name, kind)
        if owner:
            _adopt(found, patch_id, owner, package)
    except Exception as error:  # noqa: BLE001 - whatever a file raises, the others must still load
        return Broken(patch_id, file, error)
    return found


def _adopt(patch: Defect, patch_id: str, owner: str, package: str) -> None:
    """Give a patch of another party the id that it has here."""
    patch.id, patch.home = patch_id, package
    prefix = f"{owner.upper()}_DISABLE_"
    if isinstance(patch, Patch) and not patch.opt_out.startswith(prefix):
        raise DeclarationError(f"{patch.module}: opt_out: needs a variable named {prefix}…, not {patch.opt_out!r}")


def _modules(package: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield the full name and the file of every module below a package; a leading underscore hides one."""
    seen = set()
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        below = module.name.removeprefix(package.__name__)
        if not module.ispkg and "._" not in below:
            folder = getattr(module.module_finder, "path", "")
            seen.add(module.name)
            yield module.name, f"{folder}/{module.name.rpartition('.')[2]}.py"
    # pkgutil passes over folders without `__init__`, which Python imports all the same.
    for root in map(Path, package.__path__):
        for file in root.rglob("*.py") if root.is_dir() else ():
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join((package.__name__, *parts))
            if name not in seen and all(part.isidentifier() and not part.startswith("_") for part in parts):
                yield name, str(file)


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
