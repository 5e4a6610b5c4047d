"""What the package index has of a distribution: releases, pre-releases, yanked ones, and their sources."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    import pypi_simple

__all__ = ["IndexProblem", "Release", "find_releases", "unpack_source"]

_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
"""Where an index other than the public one may be named; the same that the installer listens to."""

_TIMEOUT = 60.0
"""Seconds without a byte after which the index counts as not answering."""


class IndexProblem(Exception):  # noqa: N818 - it is reported as a problem of one release, not raised to the user
    """The index cannot be reached, or has not what was asked for."""


@dataclass(frozen=True)
class Release:
    """One version of a distribution on the index.

    Attributes:
        version: As PEP 440 reads it.
        remark: "pre-release", "yanked: <reason>", or empty for what installers choose by themselves.
    """

    version: Version
    remark: str = ""


def find_releases(distribution: str) -> list[Release]:
    """Return every version of a distribution that the index has a file of, oldest first.

    Args:
        distribution: Its canonical name.

    Raises:
        IndexProblem: The index cannot be reached or does not know the distribution.
    """
    remarks: dict[Version, set[str]] = {}
    for file in _files(distribution):
        try:
            version = Version(file.version or "")
        except InvalidVersion:
            continue
        remark = f"yanked: {file.yanked_reason or 'no reason given'}" if file.is_yanked else ""
        remarks.setdefault(version, set()).add(remark)
    # A release counts as yanked when all of its files are.
    return [
        Release(version, "" if "" in found else min(found))
        if not version.is_prerelease
        else Release(version, "pre-release")
        for version, found in sorted(remarks.items())
    ]


def unpack_source(distribution: str, version: str, package: str, folder: Path) -> None:
    """Put the package of a source archive and its metadata into a folder, without building anything.

    Args:
        distribution: Its canonical name.
        version: The release.
        package: The import package, a folder at the top of the archive.
        folder: Where both go; made if it is missing.

    Raises:
        IndexProblem: There is no source archive of that release, or it cannot be fetched.
    """
    import pypi_simple  # noqa: PLC0415 - comes with the extra `matrix`

    archives = [f for f in _files(distribution) if f.package_type == "sdist" and f.version == version]
    if not archives:
        raise IndexProblem(f"{distribution} {version} has no source archive")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / archives[0].filename
    try:
        with pypi_simple.PyPISimple(endpoint=_endpoint(os.environ)) as client:
            client.download_package(archives[0], archive, timeout=_TIMEOUT)
    except Exception as error:
        raise IndexProblem(f"{archive.name} cannot be fetched: {type(error).__name__}: {error}") from error
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                # The first part of every name is the archive's own folder.
                member.name = member.name.partition("/")[2]
                if member.name == "PKG-INFO":
                    member.name = f"{package}-{version}.dist-info/METADATA"
                elif not member.name.startswith(f"{package}/"):
                    continue
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise IndexProblem(f"{archive.name} cannot be unpacked: {type(error).__name__}: {error}") from error
    archive.unlink()


def _files(distribution: str) -> list[pypi_simple.DistributionPackage]:
    try:
        import pypi_simple  # noqa: PLC0415 - comes with the extra `matrix`
    except ModuleNotFoundError as error:
        raise IndexProblem("pypi-simple is not installed; `pip install nrl-patches[matrix]` brings it") from error
    try:
        with pypi_simple.PyPISimple(endpoint=_endpoint(os.environ)) as client:
            return client.get_project_page(distribution, timeout=_TIMEOUT).packages
    except Exception as error:
        raise IndexProblem(f"{distribution}: {type(error).__name__}: {error}") from error


def _endpoint(environ: Mapping[str, str]) -> str:
    import pypi_simple  # noqa: PLC0415 - comes with the extra `matrix`

    return next((environ[name] for name in _VARIABLES if environ.get(name)), pypi_simple.PYPI_SIMPLE_ENDPOINT)
