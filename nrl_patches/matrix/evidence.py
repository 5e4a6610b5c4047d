"""What was measured: one cell per patch and environment, kept as ``matrix.json``.

The package carries the evidence that its declarations were taken from; a run of ``nrl-patches matrix`` adds to it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.affected import FLOORS
from nrl_patches.engine.decision import evidence_file
from nrl_patches.errors import Problem
from nrl_patches.matrix.names import parse_environment

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = ["COMMITTED", "SCHEMA_VERSION", "Cell", "Evidence", "Measurement", "write_whole"]

COMMITTED = resources.files("nrl_patches.matrix").joinpath("data").joinpath("matrix.json")
"""The evidence that this version of the package was released with."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """What a tripwire found in one environment.

    Attributes:
        verdict: Its one word; see docs/tripwires.md.
        declared: Whether the patch's ``affected`` named this environment then.
        code: The fingerprint of the patch that was measured; see :mod:`nrl_patches.matrix.fingerprint`.
        present: Whether the probe saw the defect without the patch; None if it had no answer.
        evidence: What the probe measured then.
        patched: What it measured with the patch; empty where the tripwire did not ask.
        error: Why there is no answer, in one line.
        forced: Where the patch does not cover the release and was forced: whether the defect was gone with it.
        seconds: How long the tripwire took.
        date: The day, ISO 8601.
        versions: Of python, torch and nrl-patches then; empty where they are those of the measurement around it.
    """

    verdict: str
    declared: bool
    code: str
    present: bool | None
    evidence: Mapping[str, float | str | bool] = field(default_factory=dict)
    patched: Mapping[str, float | str | bool] = field(default_factory=dict)
    error: str = ""
    forced: bool | None = None
    seconds: float = 0.0
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """What was measured in one environment.

    Attributes:
        date: The day of the last attempt, ISO 8601.
        versions: Of python, torch and nrl-patches, then; a cell of an earlier attempt may have others.
        cells: By patch id.
        problem: Why the environment could not be made, in one line; there are no cells then.
    """

    date: str
    versions: Mapping[str, str]
    cells: Mapping[str, Cell] = field(default_factory=dict)
    problem: str = ""

    def merged(self, other: Measurement, replaces: Callable[[str, Cell, Cell], bool]) -> Measurement:
        """Return what this measurement and another one of the same environment know together.

        Where one attempt could not even make the environment, what was seen in the other stands. Every cell keeps the
        versions that it was measured with.

        Args:
            other: The other measurement.
            replaces: Whether, of a patch (its id), the other measurement's cell counts (second) and not ours (first).
        """
        if other.problem and self.cells:
            return self
        if self.problem and other.cells:
            return other
        last = self if self.date > other.date else other
        cells = {patch_id: _with_versions(cell, self.versions) for patch_id, cell in self.cells.items()}
        for patch_id, cell in other.cells.items():
            if patch_id not in cells or replaces(patch_id, cells[patch_id], cell):
                cells[patch_id] = _with_versions(cell, other.versions)
        return dataclasses.replace(last, cells={i: _without_versions(cell, last.versions) for i, cell in cells.items()})

    def all_versions(self) -> list[Mapping[str, str]]:
        """Return the versions that the cells were measured with; without any cell, those of the attempt."""
        return [cell.versions or self.versions for cell in self.cells.values()] or [self.versions]


@dataclass(frozen=True)
class Evidence:
    """All measurements, and what the index had when they were taken.

    Attributes:
        measurements: By the name of the environment.
        releases: Each distribution's versions, oldest first, with the index's remark; see ``index.Release``.
        code: The digests of what the patches touch and rely on, by place and release; see
            :mod:`nrl_patches.engine.upstream_code`.
    """

    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    releases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Traversable) -> Evidence:
        """Read a ``matrix.json``; a file that is not there is no evidence.

        Raises:
            ValueError: The file is of another schema, or not whole.

        Args:
            file: The file; it may be in an archive.

        Returns:
            The evidence; empty if there is no such file.
        """
        if not file.is_file() and not file.is_dir():
            return cls()
        content = file.read_bytes()
        try:
            return _evidence(json.loads(content))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                Problem(
                    str(file),
                    expected=f"what `nrl-patches matrix` writes, of schema {SCHEMA_VERSION}",
                    found=f"{type(error).__name__}: {error}" if content.strip() else "an empty file",
                    next_step=_step(file),
                )
            ) from error

    @classmethod
    def released(cls, own: Traversable = COMMITTED) -> Evidence:
        """Return the evidence that this package came with, and what other parties keep with their patch files.

        Args:
            own: That of this package.

        Raises:
            ValueError: A file is of another schema, or not whole.
        """
        found = cls.read(own)
        for file in map(evidence_file, default_activation().registry.packages.values()):
            found = found.joined(cls.read(file))
        return found

    def joined(self, other: Evidence) -> Evidence:
        """Return what both know; they are about different patches, and the other one's releases count.

        Args:
            other: The evidence of another party.
        """
        measurements = dict(self.measurements)
        for name, measurement in other.measurements.items():
            known = measurements.get(name, measurement)
            measurements[name] = known.merged(measurement, lambda *_: True)
        pairs = ((self.releases, other.releases), (self.code, other.code))
        releases, code = ({n: {**a.get(n, {}), **b.get(n, {})} for n in {*a, *b}} for a, b in pairs)
        return Evidence(measurements, releases, code)

    def finals(self, distribution: str) -> list[Version]:
        """Return the final releases of a distribution that are measured and judged, oldest first; no yanked one.

        Args:
            distribution: Its canonical name.
        """
        known = self.releases.get(distribution, {})
        versions = sorted(Version(version) for version, remark in known.items() if not remark)
        return [version for version in versions if version >= FLOORS.get(distribution, version)]

    def text(self) -> str:
        """Return the content of a ``matrix.json``: one line per cell, so that a difference can be read."""
        lines = ["{", f' "schema": {SCHEMA_VERSION},', ' "releases": {']
        lines += _joined(f"  {json.dumps(name)}: {json.dumps(dict(r))}" for name, r in sorted(self.releases.items()))
        lines += [" },", ' "code": {']
        lines += _joined(
            f"  {json.dumps(place)}: {json.dumps(dict(sorted(digests.items(), key=_release)))}"
            for place, digests in sorted(self.code.items())
        )
        lines += [" },", ' "measurements": {']
        in_order = sorted(self.measurements.items(), key=lambda pair: [*parse_environment(pair[0]).items()])
        lines += _joined(f"  {json.dumps(name)}: {_text(measurement)}" for name, measurement in in_order)
        return "\n".join([*lines, " }", "}", ""])


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new one, even after a crash.

    Args:
        file: The file to create or replace; its folder is created if it is missing.
        content: What to write; text is encoded as UTF-8.

    Raises:
        OSError: It cannot be written; the old content is unchanged then.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        Path(made).chmod(0o644)
        Path(made).replace(file)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise


def _step(file: Traversable) -> str:
    if not isinstance(file, Path) or file == COMMITTED:
        return "reinstall nrl-patches"
    cleaning = f"nrl-patches matrix --clean --folder {shlex.quote(str(file.parent))}"
    return f"delete the file, or its whole folder with `{cleaning}`; what only this file held is measured again"


def _release(pair: tuple[str, str]) -> Version:
    return Version(pair[0])


def _with_versions(cell: Cell, versions: Mapping[str, str]) -> Cell:
    return dataclasses.replace(cell, versions=cell.versions or versions)


def _without_versions(cell: Cell, versions: Mapping[str, str]) -> Cell:
    return dataclasses.replace(cell, versions={}) if cell.versions == versions else cell


def _evidence(held: dict[str, Any]) -> Evidence:
    if held.get("schema") != SCHEMA_VERSION:
        raise ValueError(f"schema {held.get('schema')}")
    for environment in held["measurements"]:
        parse_environment(environment)  # Raises here, where the file can be named, what sorting would raise later.
    return Evidence(
        {name: _measurement(m) for name, m in held["measurements"].items()}, held["releases"], held.get("code", {})
    )


def _measurement(held: dict[str, Any]) -> Measurement:
    cells = {patch_id: Cell(**{"date": held["date"], **cell}) for patch_id, cell in held["cells"].items()}
    return Measurement(held["date"], held["versions"], cells, held["problem"])


def _text(measurement: Measurement) -> str:
    head = {"date": measurement.date, "versions": dict(measurement.versions), "problem": measurement.problem}
    cells = _joined(
        f"    {json.dumps(patch_id)}: {json.dumps(_fields(cell, measurement.date))}"
        for patch_id, cell in sorted(measurement.cells.items())
    )
    return "\n".join([f'{json.dumps(head)[:-1]}, "cells": {{', *cells, "   }}"])


def _fields(cell: Cell, date: str) -> dict[str, Any]:
    """Return what a file has of a cell: all but what is empty, and the date if it is that of the measurement."""
    empty: Mapping[str, object] = {"evidence": {}, "patched": {}, "error": "", "forced": None, "versions": {}}
    empty = {**empty, "date": date}
    return {name: value for name, value in dataclasses.asdict(cell).items() if empty.get(name, cell) != value}


def _joined(lines: Any) -> list[str]:
    return ",\n".join(lines).split("\n") if (lines := list(lines)) else []
