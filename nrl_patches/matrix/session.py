"""One run of the matrix in a folder of its own: what is known, what is left to measure, what it costs in disk."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nrl_patches.defect import Defect
from nrl_patches.engine.decision import places_of
from nrl_patches.engine.upstream_code import digest
from nrl_patches.errors import Problem
from nrl_patches.matrix.disk import disk_usage
from nrl_patches.matrix.environments import OF_THE_BASE, BuildProblem, base_release, build, declared_requirement
from nrl_patches.matrix.evidence import COMMITTED, Cell, Evidence, Measurement, write_whole
from nrl_patches.matrix.fingerprint import fingerprint
from nrl_patches.matrix.index import Release, find_releases
from nrl_patches.matrix.names import is_declared, name_environment, parse_environment
from nrl_patches.matrix.plan import COMPANIONS, Selection, Task, axis, plan
from nrl_patches.matrix.runner import Bench
from nrl_patches.tripwires.run import Verdict

__all__ = ["Again", "NotOursError", "Workshop"]

Again = Literal["errors", "all"]

_MARKER = "made-by-nrl-patches"
_KEPT = "matrix.json"


class NotOursError(Exception):
    """The folder cannot be worked in: another run uses it, or it has other files in it."""


class Workshop:
    """A folder in which releases are installed and measured.

    What belongs to this class below it: ``environments`` (with the installer's cache), ``matrix.json`` (what was
    measured, whole after every release), ``report``, ``matplotlib`` (its cache), and the marker by which a folder is
    known as one that may be deleted. The marker is the first file there and the last to go, and the lock of a run.

    Args:
        folder: The folder; made when it is needed.
        patches: The patches to measure.
        timeout: Seconds for each side of a tripwire.
        others: Patches that are not measured now; what is known of them is kept as carefully.
    """

    def __init__(self, folder: Path, patches: Iterable[Defect], timeout: float, others: Iterable[Defect] = ()) -> None:
        self.folder = folder.resolve()
        self.patches = {patch.id: patch for patch in patches}
        self.environments = self.folder / "environments"
        self.report = self.folder / "report"
        self._every = {patch.id: patch for patch in others} | self.patches
        self.codes = {patch.id: fingerprint(patch) for patch in self._every.values()}
        self.bench = Bench(self.environments, self.patches, self.codes, timeout)
        self.evidence = Evidence()
        self._known: list[str] = []

    @property
    def cleaning(self) -> str:
        """The command that cleans this folder, from wherever it is given."""
        return f"nrl-patches matrix --clean --folder {shlex.quote(str(self.folder))}"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take the folder for this process, and read what the package was released with and what was measured here.

        Raises:
            NotOursError: Another process has it, or it has other files in it.
            ValueError: What was measured cannot be read.
        """
        if not self._is_ours():
            step = "give another --folder"
            raise NotOursError(self._explain("an empty folder, or one that this command made", "other files", step))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self.environments.mkdir(exist_ok=True)
            for left_over in self.environments.glob("*.part-*"):
                # What cannot be deleted, because an installer that outlived its run still writes there, can wait.
                with suppress(OSError):
                    shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
            for evidence in (Evidence.released(COMMITTED), Evidence.read(self.folder / _KEPT)):
                self._add(evidence)
            yield

    def _is_ours(self) -> bool:
        """Whether the folder may be marked: it is, it has nothing in it, or only what another machine measured."""
        names = {file.name for file in self.folder.iterdir()} if self.folder.exists() else set()
        if names == {_KEPT}:
            Evidence.read(self.folder / _KEPT)
            return True
        return not names or _MARKER in names

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / _MARKER).open("a", encoding="utf-8") as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Ends with the process, however that ends.
            except OSError as error:
                step = "wait for the other run, or give another --folder"
                raise NotOursError(
                    self._explain("a folder that no other run uses", "its lock is held", step)
                ) from error
            yield

    def _explain(self, expected: str, found: str, step: str) -> str:
        return str(Problem(str(self.folder), expected=expected, found=found, next_step=step))

    def plan(self, selection: Selection, again: Again | None = None) -> list[Task]:
        """Ask the index what there is, and return what is left to measure.

        Args:
            selection: What the user asked for.
            again: What is measured again although it is known: what gave no answer, or all.

        Raises:
            IndexProblem: The index does not answer.
            ValueError: No release matches the selection.

        Returns:
            The environments to measure, each with the patches that have no current measurement there.
        """
        patches = self.patches.values()
        names = {name for patch in patches for name in patch.affected.distributions}
        # A patch may be about one that needs a companion without naming it.
        names |= {COMPANIONS[axis(patch)] for patch in patches if axis(patch) in COMPANIONS}
        releases = {name: _releases(name) for name in sorted(names)}
        remarks = {name: {str(r.version): r.remark for r in found} for name, found in releases.items()}
        self.evidence = dataclasses.replace(self.evidence, releases={**self.evidence.releases, **remarks})
        tasks = plan(patches, releases, selection, self._pin)
        if not tasks:
            along = {axis(patch) for patch in patches}
            raise ValueError(_no_release(selection, [r.version for name in along for r in releases[name]]))
        self._known = [task.environment for task in tasks]
        if again == "all":
            return tasks
        left = (dataclasses.replace(task, patches=self._stale(task, errors=again == "errors")) for task in tasks)
        return [task for task in left if task.patches]

    def run(self, tasks: Sequence[Task], jobs: int, done: Callable[[Task, Measurement, float], None]) -> None:
        """Measure, and keep each result as soon as it is there.

        Args:
            tasks: What to measure.
            jobs: How many environments at a time.
            done: Told of each measurement, and the seconds that the rest will take by what was seen so far.
        """
        start, finished = time.monotonic(), 0

        def keep(task: Task, measurement: Measurement) -> None:
            nonlocal finished
            finished += 1
            self._add(Evidence({task.environment: measurement}), measured=True)
            self._keep_code(task.environment)
            write_whole(self.folder / _KEPT, self.evidence.text())
            left = (time.monotonic() - start) / finished * (len(tasks) - finished)
            done(task, measurement, left)

        self.bench.measure_all(tasks, jobs, keep)
        for environment in self._known:
            self._keep_code(environment)
        write_whole(self.folder / _KEPT, self.evidence.text())

    def clean(self) -> int:
        """Delete what this class made, and return the bytes that are free again.

        Raises:
            NotOursError: Another process uses the folder, or no run ever did.

        Returns:
            The bytes; 0 if there is no such folder.
        """
        if not self.folder.exists():
            return 0
        if not (self.folder / _MARKER).exists():
            step = "give the --folder of a run"
            raise NotOursError(self._explain("a folder that this command made", f"no {_MARKER} in it", step))
        with self._lock():
            size = disk_usage(self.folder)
            for folder in (self.environments, self.report, self.folder / "matplotlib"):
                if folder.exists():
                    shutil.rmtree(folder)
            for file in (*self.folder.glob(f".{_KEPT}.*"), self.folder / _KEPT, self.folder / _MARKER):
                file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
            return size
        return size - disk_usage(self.folder)

    def _keep_code(self, environment: str) -> None:
        """Note what the code of its releases is that patches touch or rely on, unless that is known."""
        releases = parse_environment(environment)
        code = {place: dict(digests) for place, digests in self.evidence.code.items()}
        places = {
            (p, name, str(v))
            for patch in self._every.values()
            for name, v in releases.items()
            for p in places_of(patch, name)
        }
        left = sorted((p, name, v) for p, name, v in places if v not in code.get(p, {}))
        if not left:
            return
        with suppress(BuildProblem):  # Measuring it has met the problem, and reports it.
            folders = [str(folder) for folder in build(environment, self.environments)]
            for place, _, version in left:
                code.setdefault(place, {})[version] = digest(place, folders or None)
            self.evidence = dataclasses.replace(self.evidence, code=code)

    def _pin(self, distribution: str, version: str, companion: str) -> Requirement | None:
        try:
            return declared_requirement(name_environment({distribution: version}), companion, self.environments)
        except BuildProblem:
            return None  # Measuring it will meet the problem again, and report it.

    def _stale(self, task: Task, *, errors: bool) -> tuple[str, ...]:
        """The patches of a task that were not measured there as they are now, code and declaration."""
        known = self.evidence.measurements.get(task.environment)
        if known is None:
            return task.patches
        current = {
            patch_id
            for patch_id, cell in known.cells.items()
            if self._is_current(patch_id, cell, task.environment) and not (errors and cell.verdict == Verdict.ERROR)
        }
        return tuple(patch_id for patch_id in task.patches if patch_id not in current)

    def _is_current(self, patch_id: str, cell: Cell, environment: str) -> bool:
        return self._has_current_code(patch_id, cell) and self._has_current_range(patch_id, cell, environment)

    def _has_current_code(self, patch_id: str, cell: Cell) -> bool:
        return cell.code == self.codes.get(patch_id)

    def _has_current_range(self, patch_id: str, cell: Cell, environment: str) -> bool:
        return patch_id in self._every and cell.declared is is_declared(self._every[patch_id], environment)

    def _worth(self, environment: str, patch_id: str, cell: Cell) -> tuple[bool, bool, bool, str]:
        """What makes a cell count before another one of its patch, the weightiest first."""
        return (
            self._has_current_code(patch_id, cell),
            cell.verdict != Verdict.ERROR,
            self._has_current_range(patch_id, cell, environment),
            cell.date,
        )

    def _add(self, other: Evidence, *, measured: bool = False) -> None:
        """Take in what was read after what is known, or what was just measured, which counts whatever is known."""

        def replaces(environment: str, patch_id: str, known: Cell, found: Cell) -> bool:
            return measured or self._worth(environment, patch_id, found) >= self._worth(environment, patch_id, known)

        measurements = dict(self.evidence.measurements)
        for environment, measurement in other.measurements.items():
            known = measurements.get(environment, measurement)
            measurements[environment] = known.merged(measurement, functools.partial(replaces, environment))
        releases = dict(self.evidence.releases)
        for name, remarks in other.releases.items():
            releases[name] = _with_remarks(releases.get(name, {}), remarks)
        code = {
            p: {**self.evidence.code.get(p, {}), **other.code.get(p, {})} for p in {*self.evidence.code, *other.code}
        }
        self.evidence = Evidence(measurements, releases, code)


def _releases(distribution: str) -> list[Release]:
    return [Release(base_release(distribution))] if distribution in OF_THE_BASE else find_releases(distribution)


def _with_remarks(known: Mapping[str, str], read: Mapping[str, str]) -> dict[str, str]:
    """Join what two files say of the releases of a distribution; neither has the time of its query.

    Releases do not vanish as a rule, and one that was yanked stays so.
    """
    return {version: read.get(version) or known.get(version, "") for version in sorted({*known, *read}, key=Version)}


def _no_release(selection: Selection, versions: Sequence[Version]) -> str:
    wanted = selection.specifier or SpecifierSet()
    pre = [str(v) for v in sorted(versions) if v.is_prerelease and wanted.contains(v, prereleases=True)]
    problem = Problem(
        f"releases {wanted}".rstrip(),
        expected="at least one on the index",
        found=f"only pre-releases: {', '.join(pre)}" if pre else f"none; the newest is {max(versions, default='none')}",
        next_step="add --pre" if pre else "give other --releases",
    )
    return str(problem)
