"""The verdict on a declaration: whether ``affected`` names exactly the releases in which the defect was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.engine.affected import FLOORS, Affected
from nrl_patches.matrix.environments import KNOWN_GAPS
from nrl_patches.matrix.evidence import Cell, Evidence, Measurement
from nrl_patches.matrix.judgement import Judgement, Run
from nrl_patches.matrix.names import FUTURE, is_declared, name_environment, names_environment, parse_environment
from nrl_patches.matrix.plan import axis, declared_finals, is_in_scope
from nrl_patches.tripwires.run import PASSING, Verdict

__all__ = ["judge"]


def judge(patch: Defect, evidence: Evidence, code: str | None = None) -> Judgement:
    """Compare the declaration of a patch with what was measured of it.

    Yanked releases and pre-releases are facts like the others, but no range is bent around them: they are remarks.

    Args:
        patch: The patch.
        evidence: All measurements.
        code: The fingerprint of the patch; what was measured of other code does not count. None counts everything.

    Returns:
        The judgement; it has no objections if the declaration is exact.
    """
    facts = _Facts(patch, evidence, code)
    unmeasured = facts.unmeasured()
    objections = [*facts.differing(), *facts.failing(), *unmeasured, *_open_ends(patch, evidence)]
    days = sorted(cell.date for cell in facts.cells.values())
    return Judgement(
        patch=patch,
        runs=facts.runs,
        objections=(*objections, *(["the defect was seen nowhere"] if not facts.runs and _may_be_seen(patch) else [])),
        suggestion=facts.suggestion(),
        remarks=tuple(facts.remarks()),
        dates=(days[0], days[-1]) if days else (),
        unmeasured=tuple(unmeasured),
    )


def _may_be_seen(patch: Defect) -> bool:
    """Whether a declaration names any release: `<0` says that the defect was looked for, and is nowhere."""
    ends = [part.end for conjunction in patch.affected.alternatives for part in conjunction]
    return not all(end == (Version("0"), False) for end in ends)


class _Facts:
    """What the evidence has of a patch, sorted by what it says.

    Args:
        patch: The patch.
        evidence: All measurements.
        code: As for :func:`judge`.

    Attributes:
        stale: How many measurements are of other code.
        cells: The others, by environment.
        usual: Those of releases that a range is bent around.
        known: Those of them that have an answer.
        unknown: Why the others have none; releases that could not be installed are among them.
        runs: Where the defect was seen.
    """

    def __init__(self, patch: Defect, evidence: Evidence, code: str | None) -> None:
        self.patch, self.evidence = patch, evidence
        found = dict(self._found())
        self.cells = {e: c for e, c in found.items() if code in {None, c.code}}
        self.stale = len(found) - len(self.cells)
        self.usual = {e: c for e, c in self.cells.items() if not _remark(e, evidence)}
        self.known = {e: c for e, c in self.usual.items() if c.present is not None}
        self.unknown = {e: c.error for e, c in self.usual.items() if c.present is None}
        self.unknown |= self._not_installed()
        self.runs = tuple(_runs(patch, self.usual))

    def _found(self) -> Iterator[tuple[str, Cell]]:
        named = set(self.patch.affected.distributions)
        for environment, measurement in self.evidence.measurements.items():
            is_about = named <= parse_environment(environment).keys() and _counts(environment)
            if is_about and self.patch.id in measurement.cells:
                yield environment, measurement.cells[self.patch.id]

    def _not_installed(self) -> dict[str, str]:
        along = {e: m.problem for e, m in self.evidence.measurements.items() if m.problem and _is_along(self.patch, e)}
        return {e: problem for e, problem in along.items() if _counts(e)}

    def differing(self) -> list[str]:
        """Name where the declaration says something else than what was measured."""
        return [_differs(e, c) for e, c in self.known.items() if is_declared(self.patch, e) is not c.present]

    def failing(self) -> list[str]:
        """Name where the patch does not do what it declares."""
        declared = ((e, c) for e, c in self.known.items() if is_declared(self.patch, e) is c.present)
        return [_fails(e, c) for e, c in declared if _failing(c)]

    def heavy(self) -> list[str]:
        """Return the environments without an answer on which the declaration rests."""
        line = axis(self.patch)
        answered = {parse_environment(environment)[line] for environment in self.known}
        silent = _deciding(self.patch, self.evidence, self.runs) - answered
        return [e for e in self.unknown if is_declared(self.patch, e) or parse_environment(e)[line] in silent]

    def unmeasured(self) -> list[str]:
        """Name what measuring could answer."""
        found = _unmeasured(self.patch, self.evidence, self.runs, tried={*self.usual, *self.unknown})
        unexplained = [e for e in self.heavy() if e not in KNOWN_GAPS and not _remark(e, self.evidence)]
        if unexplained:
            found.append(f"no answer, but it matters: {', '.join(unexplained)}")
        if self.stale:
            found.append(f"{self.stale} measurements are of other code than today's")
        return found

    def suggestion(self) -> tuple[str, ...]:
        """Return the requirement that the evidence supports; empty if there is none."""
        suggestion = _suggest(self.patch, self.usual, self.runs)
        return suggestion if suggestion and _agrees(suggestion, self.known) else ()

    def remarks(self) -> Iterator[str]:
        """Tell of releases that count for nothing, and why."""
        for environment in self.heavy():
            why = KNOWN_GAPS.get(environment, self.unknown[environment])
            yield f"{environment} could not be measured: {why}"
        for environment, cell in self.cells.items():
            remark = _remark(environment, self.evidence)
            if remark and cell.present is not None and is_declared(self.patch, environment) is not cell.present:
                yield f"{environment} ({remark}) is {'' if cell.present else 'not '}affected, {_against(environment)}"
        line, floor = axis(self.patch), FLOORS.get(axis(self.patch))
        if floor is not None and self.runs and self.runs[0].bad[0] == floor:
            yield f"nothing older than {line} {floor} is measured (FLOORS in nrl_patches/engine/affected.py)"


def _runs(patch: Defect, cells: Mapping[str, Cell]) -> Iterable[Run]:
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


def _suggest(patch: Defect, cells: Mapping[str, Cell], runs: Sequence[Run]) -> tuple[str, ...]:
    measured = sorted({parse_environment(environment)[axis(patch)] for environment in cells})
    others = _others(patch, cells)
    return tuple(" & ".join([_range(axis(patch), run.bad, measured), *others]) for run in runs)


def _others(patch: Defect, cells: Mapping[str, Cell]) -> list[str]:
    ranges = []
    for distribution in patch.affected.distributions[1:]:
        measured = sorted({parse_environment(environment)[distribution] for environment in cells})
        bad = sorted({parse_environment(e)[distribution] for e, cell in cells.items() if cell.present})
        ranges += [_range(distribution, bad, measured)] if bad else []
    return ranges


def _range(distribution: str, bad: Sequence[Version], measured: Sequence[Version]) -> str:
    later = [version for version in measured if version > bad[-1]]
    # A fix ends the range before the release that has it; otherwise it ends with the newest that was measured.
    end = f"<{later[0].public}" if later else f"<={bad[-1].public}"
    return f"{distribution}>={bad[0].public},{end}"


def _agrees(suggestion: Sequence[str], known: Mapping[str, Cell]) -> bool:
    affected = Affected(suggestion)
    return all(names_environment(affected, environment) is cell.present for environment, cell in known.items())


def _differs(environment: str, cell: Cell) -> str:
    if cell.present:
        return f"{environment} has the defect, but is not declared"
    return f"{environment} is declared, but does not have the defect"


def _failing(cell: Cell) -> bool:
    # Obsolete was judged against the declaration of its day. Where that did not cover it, the patch was not tried.
    return cell.verdict not in {*PASSING, Verdict.OBSOLETE}


def _fails(environment: str, cell: Cell) -> str:
    if cell.verdict == Verdict.UNCOVERED:
        return f"{environment} is declared since, but the patch was not tried there"
    return f"{environment}: {cell.verdict}" + (f": {cell.error}" if cell.error else "")


def _unmeasured(patch: Defect, evidence: Evidence, runs: Sequence[Run], tried: set[str]) -> list[str]:
    """The releases on the index that matter and that were never measured."""
    done = {parse_environment(environment)[axis(patch)] for environment in tried}
    left = [version for version in evidence.finals(axis(patch)) if version not in done]
    declared = declared_finals(patch, axis(patch), left)
    deciding = [v for v in left if v in _deciding(patch, evidence, runs) and v not in declared]
    found = {"declared": declared, "in a range, next to it or the newest": deciding}
    for run, companion in ((run, name) for run in runs for name in patch.affected.distributions[1:]):
        others = declared_finals(patch, companion, evidence.finals(companion))
        for version in dict.fromkeys((run.bad[0], run.bad[-1])):
            missing = [v for v in others if name_environment({axis(patch): version, companion: v}) not in tried]
            found[f"declared together with {axis(patch)} {version}"] = missing
    return [f"{how}, but not measured: {', '.join(map(str, vs))}" for how, vs in found.items() if vs]


def _deciding(patch: Defect, evidence: Evidence, runs: Sequence[Run]) -> set[Version]:
    """The releases on which the ends of a declaration rest: in a run, next to it, and the newest."""
    finals = evidence.finals(axis(patch))
    deciding = set(finals[-1:])
    for run in runs:
        deciding.update(version for version in finals if run.bad[0] <= version <= run.bad[-1])
        deciding.update([version for version in finals if version < run.bad[0]][-1:])
        deciding.update([version for version in finals if version > run.bad[-1]][:1])
    return deciding


def _counts(environment: str) -> bool:
    return all(is_in_scope(distribution, version) for distribution, version in parse_environment(environment).items())


def _open_ends(patch: Defect, evidence: Evidence) -> list[str]:
    """Name the distributions of which the declaration says more than was measured: how a range ends is a claim."""
    found = []
    for part in (part for conjunction in patch.affected.alternatives for part in conjunction):
        name = part.distribution
        measured = {e: v for e in evidence.measurements if (v := parse_environment(e).get(name)) is not None}
        published = {Version(v) for v, remark in evidence.releases.get(name, {}).items() if not remark}
        newest = max({*published, *measured.values()}, default=Version("0"))
        end, has_defect = part.end or (FUTURE, False)
        answered = [v for e, v in measured.items() if _has_answer(patch, evidence.measurements[e]) and v > end]
        if end > newest or part.releases.contains(FUTURE):
            found.append(f"{name}: the range extends past {newest}, the newest measured release")
        elif has_defect and answered:
            found.append(
                f"{name}: {part.text} says that {end} is the newest measured, but {max(answered)} was measured"
            )
    return list(dict.fromkeys(found))


def _has_answer(patch: Defect, measurement: Measurement) -> bool:
    cell = measurement.cells.get(patch.id)
    return cell is not None and cell.present is not None


def _against(environment: str) -> str:
    if any(version.is_prerelease for version in parse_environment(environment).values()):
        return "where the guard decides, not the range"
    return "against the range"


def _is_along(patch: Defect, environment: str) -> bool:
    return next(iter(parse_environment(environment))) == axis(patch)


def _remark(environment: str, evidence: Evidence) -> str:
    releases = parse_environment(environment)
    remarks = (evidence.releases.get(name, {}).get(str(version), "") for name, version in releases.items())
    return next(filter(None, remarks), "")
