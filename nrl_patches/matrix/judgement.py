"""The verdict on a declaration: whether ``affected`` names exactly the releases in which the defect was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from packaging.version import Version

from nrl_patches.affected import Affected, Answer
from nrl_patches.declaration import Patch
from nrl_patches.installed import Installed
from nrl_patches.matrix.environments import parse_environment
from nrl_patches.matrix.evidence import Cell, Evidence
from nrl_patches.matrix.measurement import is_declared
from nrl_patches.matrix.plan import axis
from nrl_patches.tripwires import PASSING, Verdict

__all__ = ["Judgement", "Run", "judge"]

_SHORT = 3
_FUTURE = Version("9999")


@dataclass(frozen=True)
class Run:
    """Consecutive releases that have the defect.

    Attributes:
        bad: They, oldest first.
        good: The first release after them that does not have it; None if none was measured.
    """

    bad: tuple[Version, ...]
    good: Version | None

    def __str__(self) -> str:
        """Return the run for people: "seen in 5.5.0, 5.5.1; gone in 5.5.2"."""
        few = len(self.bad) <= _SHORT
        seen = ", ".join(map(str, self.bad)) if few else f"{self.bad[0]} to {self.bad[-1]} ({len(self.bad)} releases)"
        return f"seen in {seen}" + (f"; gone in {self.good}" if self.good else "")


@dataclass(frozen=True)
class Judgement:
    """What the evidence says of one declaration.

    Attributes:
        patch: The patch.
        runs: Where the defect was seen along the patch's axis.
        objections: What keeps the declaration from being exact, one sentence each; empty if nothing does.
        suggestion: The requirement that the evidence supports, as ``affected`` takes it; empty if there is none.
        remarks: What else a reader should know: declared releases that could not be measured.
        dates: The days of the oldest and the newest measurement.
    """

    patch: Patch
    runs: tuple[Run, ...]
    objections: tuple[str, ...]
    suggestion: tuple[str, ...]
    remarks: tuple[str, ...]
    dates: tuple[str, ...]

    @property
    def seen(self) -> str:
        """Where the defect was seen, and when that was measured, in a line."""
        if not self.dates:
            return "not measured"
        runs = "; ".join(map(str, self.runs)) or "seen nowhere"
        return f"{runs}; measured {' to '.join(dict.fromkeys(self.dates))}"

    def lines(self) -> list[str]:
        """Return the verdict for people: one line if the declaration is exact, otherwise what to paste."""
        if not self.objections:
            head = f"exact: {self.patch.id}: {self.patch.affected}: {self.seen}"
            return [head, *(f"    {remark}" for remark in self.remarks)]
        shown = self.suggestion[0] if len(self.suggestion) == 1 else self.suggestion
        paste = f"affected={shown!r}".replace("'", '"') if shown else "nothing: no product of ranges fits; see the page"
        return [
            f"WRONG: {self.patch.id}: {self.patch.affected}: {self.seen}",
            *(f"    {line}" for line in (*self.objections, *self.remarks)),
            f"    paste: {paste}",
        ]


def judge(patch: Patch, evidence: Evidence) -> Judgement:
    """Compare the declaration of a patch with what was measured of it.

    Yanked releases and pre-releases are facts like the others, but no range is bent around them: they are remarks.

    Args:
        patch: The patch.
        evidence: All measurements.
    """
    cells = {
        environment: measurement.cells[patch.id]
        for environment, measurement in evidence.measurements.items()
        if patch.id in measurement.cells
    }
    usual = {e: c for e, c in cells.items() if not _remark(e, evidence)}
    runs = tuple(_runs(patch, usual))
    suggestion = _suggest(patch, usual, runs)
    known = {e: c for e, c in usual.items() if c.present is not None}
    objections = [_differs(e, c) for e, c in known.items() if is_declared(patch, e) is not c.present]
    objections += [_fails(e, c) for e, c in known.items() if is_declared(patch, e) is c.present and _failing(c)]
    missing = _missing(patch, evidence)
    objections += [f"declared, but not measured: {', '.join(missing)}"] if missing else []
    objections += [f"{d}: the range has no end, but nobody measured what is to come" for d in _open_ends(patch)]
    if not runs:
        objections.append("the defect was seen nowhere")
    if suggestion and not _agrees(suggestion, known):
        suggestion = ()
    unknown = {e: c.error for e, c in usual.items() if c.present is None}
    unknown |= {
        e: m.problem
        for e, m in evidence.measurements.items()
        if m.problem and next(iter(parse_environment(e))) == axis(patch)
    }
    remarks = [f"{e} could not be measured: {why}" for e, why in unknown.items() if is_declared(patch, e)]
    remarks += [
        f"{e} ({_remark(e, evidence)}) is {'' if c.present else 'not '}affected, against the range"
        for e, c in cells.items()
        if _remark(e, evidence) and c.present is not None and is_declared(patch, e) is not c.present
    ]
    days = sorted(evidence.measurements[e].date for e in cells)
    return Judgement(patch, runs, tuple(objections), suggestion, tuple(remarks), (days[0], days[-1]) if days else ())


def _runs(patch: Patch, cells: Mapping[str, Cell]) -> Iterable[Run]:
    """Yield the runs along the axis; a release is bad if the defect was seen in any of its environments."""
    states: dict[Version, bool | None] = {}
    for environment, cell in cells.items():
        version = parse_environment(environment)[axis(patch)]
        states[version] = (states.get(version) or cell.present) if cell.present is not None else states.get(version)
    known = sorted((version, state) for version, state in states.items() if state is not None)
    groups = [(state, [version for version, _ in group]) for state, group in groupby(known, key=lambda pair: pair[1])]
    for place, (state, versions) in enumerate(groups):
        if state:
            yield Run(tuple(versions), groups[place + 1][1][0] if place + 1 < len(groups) else None)


def _suggest(patch: Patch, cells: Mapping[str, Cell], runs: Sequence[Run]) -> tuple[str, ...]:
    measured = sorted({parse_environment(environment)[axis(patch)] for environment in cells})
    others = _others(patch, cells)
    return tuple(" & ".join([_range(axis(patch), run.bad, measured), *others]) for run in runs)


def _others(patch: Patch, cells: Mapping[str, Cell]) -> list[str]:
    ranges = []
    for distribution in patch.affected.distributions[1:]:
        measured = sorted({parse_environment(environment)[distribution] for environment in cells})
        bad = sorted({parse_environment(e)[distribution] for e, cell in cells.items() if cell.present})
        ranges += [_range(distribution, bad, measured)] if bad else []
    return ranges


def _range(distribution: str, bad: Sequence[Version], measured: Sequence[Version]) -> str:
    later = [version for version in measured if version > bad[-1]]
    # Patch releases of the newest minor release are covered until one is measured; the next minor release is not.
    end = later[0] if later else Version(f"{bad[-1].major}.{bad[-1].minor + 1}")
    return f"{distribution}>={bad[0]},<{end}"


def _agrees(suggestion: Sequence[str], known: Mapping[str, Cell]) -> bool:
    affected = Affected(suggestion)
    return all(_decides(affected, environment) is cell.present for environment, cell in known.items())


def _decides(affected: Affected, environment: str) -> bool:
    releases = parse_environment(environment)
    found = affected.decide(lambda name: Installed(name, releases[name]) if name in releases else None)
    return found.answer is Answer.YES


def _differs(environment: str, cell: Cell) -> str:
    if cell.present:
        return f"{environment} has the defect, but is not declared"
    return f"{environment} is declared, but does not have the defect"


def _failing(cell: Cell) -> bool:
    # Obsolete and uncovered were judged against the declaration of their day; today's is compared above.
    return cell.verdict not in {*PASSING, Verdict.OBSOLETE, Verdict.UNCOVERED}


def _fails(environment: str, cell: Cell) -> str:
    return f"{environment}: {cell.verdict}" + (f": {cell.error}" if cell.error else "")


def _missing(patch: Patch, evidence: Evidence) -> list[str]:
    """The declared releases along the axis that the index has and nobody tried to measure."""
    tried = {parse_environment(e).get(axis(patch)) for e, m in evidence.measurements.items() if patch.id in m.cells}
    tried |= {parse_environment(e).get(axis(patch)) for e, m in evidence.measurements.items() if m.problem}
    ranges = [part for c in patch.affected.alternatives for part in c if part.distribution == axis(patch)]
    return [
        version
        for version, remark in evidence.releases.get(axis(patch), {}).items()
        if not remark and Version(version) not in tried and any(r.releases.contains(version) for r in ranges)
    ]


def _open_ends(patch: Patch) -> list[str]:
    return sorted({p.distribution for c in patch.affected.alternatives for p in c if p.releases.contains(_FUTURE)})


def _remark(environment: str, evidence: Evidence) -> str:
    releases = parse_environment(environment)
    remarks = (evidence.releases.get(name, {}).get(str(version), "") for name, version in releases.items())
    return next(filter(None, remarks), "")
