"""What was measured: one cell per patch and environment, kept as ``matrix.json``.

The package carries the evidence that its declarations were taken from; a run of ``nrl-patches matrix`` adds to it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nrl_patches.matrix.environments import parse_environment

__all__ = ["COMMITTED", "SCHEMA_VERSION", "Cell", "Evidence", "Measurement", "write_whole"]

COMMITTED = Path(__file__).parents[1] / "evidence" / "matrix.json"
"""The evidence that this version of the package was released with."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """What a tripwire found in one environment.

    Attributes:
        verdict: Its one word; see README.md.
        declared: Whether the patch's ``affected`` named this environment then.
        code: The fingerprint of the patch that was measured; see :mod:`nrl_patches.matrix.fingerprint`.
        present: Whether the probe saw the defect without the patch; None if it had no answer.
        evidence: What the probe measured then.
        patched: What it measured with the patch; empty where the tripwire did not ask.
        error: Why there is no answer, in one line.
        seconds: How long the tripwire took.
        date: The day, ISO 8601.
    """

    verdict: str
    declared: bool
    code: str
    present: bool | None
    evidence: Mapping[str, float | str | bool] = field(default_factory=dict)
    patched: Mapping[str, float | str | bool] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    date: str = ""


@dataclass(frozen=True)
class Measurement:
    """What was measured in one environment.

    Attributes:
        date: The day of the last attempt, ISO 8601.
        versions: Of python, torch and nrl-patches, then.
        cells: By patch id.
        problem: Why the environment could not be made, in one line; there are no cells then.
    """

    date: str
    versions: Mapping[str, str]
    cells: Mapping[str, Cell] = field(default_factory=dict)
    problem: str = ""

    def with_newer(self, newer: Measurement) -> Measurement:
        """Return this measurement with the cells of a newer one of the same environment in the place of its own.

        Where the newer attempt could not even make the environment, what was seen before stands.
        """
        if newer.problem and self.cells:
            return self
        return dataclasses.replace(newer, cells={**self.cells, **newer.cells})


@dataclass(frozen=True)
class Evidence:
    """All measurements, and what the index had when they were taken.

    Attributes:
        measurements: By the name of the environment.
        releases: Each distribution's versions, oldest first, with the index's remark; see ``index.Release``.
    """

    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    releases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Evidence:
        """Read a ``matrix.json``; a file that is not there is no evidence.

        Raises:
            ValueError: The file is of another schema, or not whole.
        """
        if not file.exists():
            return cls()
        held = json.loads(file.read_text(encoding="utf-8"))
        if held.get("schema") != SCHEMA_VERSION:
            raise ValueError(f"{file} has schema {held.get('schema')}, not {SCHEMA_VERSION}")
        return cls({name: _measurement(m) for name, m in held["measurements"].items()}, held["releases"])

    def text(self) -> str:
        """Return the content of a ``matrix.json``: one line per cell, so that a difference can be read."""
        lines = ["{", f' "schema": {SCHEMA_VERSION},', ' "releases": {']
        lines += _joined(f"  {json.dumps(name)}: {json.dumps(dict(r))}" for name, r in sorted(self.releases.items()))
        lines += [" },", ' "measurements": {']
        in_order = sorted(self.measurements.items(), key=lambda pair: [*parse_environment(pair[0]).items()])
        lines += _joined(f"  {json.dumps(name)}: {_text(measurement)}" for name, measurement in in_order)
        return "\n".join([*lines, " }", "}", ""])


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file so that whoever looks sees the old content or the new one, whatever happens meanwhile."""
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


def _measurement(held: dict[str, Any]) -> Measurement:
    cells = {patch_id: Cell(**cell) for patch_id, cell in held["cells"].items()}
    return Measurement(held["date"], held["versions"], cells, held["problem"])


def _text(measurement: Measurement) -> str:
    head = {"date": measurement.date, "versions": dict(measurement.versions), "problem": measurement.problem}
    cells = _joined(
        f"    {json.dumps(patch_id)}: {json.dumps(dataclasses.asdict(cell))}"
        for patch_id, cell in sorted(measurement.cells.items())
    )
    return "\n".join([f'{json.dumps(head)[:-1]}, "cells": {{', *cells, "   }}"])


def _joined(lines: Any) -> list[str]:
    return ",\n".join(lines).split("\n") if (lines := list(lines)) else []
