"""From evidence to what the picture and the page show: one panel for each distribution."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.matrix.compare import judge
from nrl_patches.matrix.evidence import Cell, Evidence, Measurement
from nrl_patches.matrix.names import is_declared, parse_environment
from nrl_patches.matrix.plan import axis
from nrl_patches.matrix.report.picture import Panel, Tile

__all__ = ["NOT_MEASURED", "panels"]

NOT_MEASURED = "not measured"

_REMARK = 80


def panels(patches: Iterable[Defect], evidence: Evidence) -> list[Panel]:
    """Return one panel per distribution, its releases oldest first, the patches by id.

    Args:
        patches: The patches.
        evidence: What was measured.
    """
    by_axis: dict[str, list[Defect]] = {}
    for patch in patches:
        by_axis.setdefault(axis(patch), []).append(patch)
    return [_panel(distribution, here, evidence) for distribution, here in sorted(by_axis.items())]


def _panel(distribution: str, patches: list[Defect], evidence: Evidence) -> Panel:
    along = {
        environment: measurement
        for environment, measurement in evidence.measurements.items()
        if next(iter(parse_environment(environment))) == distribution
    }
    environments = sorted(along, key=lambda environment: [*parse_environment(environment).values()])
    labels = tuple(_label(environment) for environment in environments)
    remarks = evidence.releases.get(distribution, {})
    versions = [parse_environment(environment)[distribution] for environment in environments]
    first_bad: dict[str, tuple[str, ...]] = {}
    first_good: dict[str, tuple[str, ...]] = {}
    for patch in patches:
        runs = judge(patch, evidence).runs
        first_bad[patch.id] = _first({run.bad[0] for run in runs}, patch, environments, along, present=True)
        first_good[patch.id] = _first({run.good for run in runs if run.good}, patch, environments, along, present=False)
    return Panel(
        distribution=distribution,
        columns=labels,
        rows={patch.id: tuple(_cell(patch, e, along[e]) for e in environments) for patch in patches},
        first_bad=first_bad,
        first_good=first_good,
        column_notes={
            label: textwrap.shorten(remarks[str(version)], _REMARK, placeholder="…")
            for label, version in zip(labels, versions, strict=True)
            if remarks.get(str(version))
        },
    )


def _first(
    versions: set[Version], patch: Defect, environments: list[str], along: dict[str, Measurement], *, present: bool
) -> tuple[str, ...]:
    """The first column of each release that shows the state in question."""
    found: dict[Version, str] = {}
    for environment in environments:
        cell = along[environment].cells.get(patch.id)
        version = next(iter(parse_environment(environment).values()))
        if version in versions and cell is not None and cell.present is present:
            found.setdefault(version, _label(environment))
    return tuple(found.values())


def _label(environment: str) -> str:
    return " + ".join(str(version) for version in parse_environment(environment).values())


def _cell(patch: Defect, environment: str, measurement: Measurement) -> Tile:
    declared = is_declared(patch, environment)
    cell = measurement.cells.get(patch.id)
    if cell is None:
        # Nothing could be installed, or this patch came later.
        return Tile("error" if measurement.problem else NOT_MEASURED, declared, measurement.problem)
    return Tile("error" if cell.present is None else cell.verdict, declared, _note(cell))


def _note(cell: Cell) -> str:
    if cell.error:
        return cell.error
    seen = ", ".join(f"{name} {value}" for name, value in cell.evidence.items())
    patched = ", ".join(f"{name} {value}" for name, value in cell.patched.items())
    return f"{seen}; patched: {patched}" if patched else seen
