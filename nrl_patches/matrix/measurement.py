"""Running the tripwires of a release: in its own environment, several releases at a time, each result kept at once."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from packaging.version import Version

from nrl_patches import __version__
from nrl_patches.affected import Answer
from nrl_patches.declaration import Patch
from nrl_patches.installed import Installed
from nrl_patches.matrix.environments import VARIABLES, BuildProblem, build, parse_environment, variables
from nrl_patches.matrix.evidence import Cell, Measurement
from nrl_patches.matrix.plan import Task
from nrl_patches.tripwires import Verdict, describe_end

__all__ = ["MEMORY_PER_JOB", "Bench", "is_declared", "jobs_here"]

MEMORY_PER_JOB = 3 * 2**30
"""Bytes that one release may take while it is measured: torch, the upstream package and a tiny model."""

_LINE = 300


def is_declared(patch: Patch, environment: str) -> bool:
    """Return whether the ``affected`` of a patch names an environment."""
    releases = parse_environment(environment)
    decision = patch.affected.decide(lambda name: Installed(name, releases[name]) if name in releases else None)
    return decision.answer is Answer.YES


def jobs_here() -> int:
    """Return how many releases can be measured at a time on this machine, by its processors and free memory."""
    import psutil  # noqa: PLC0415 - comes with the extra `matrix`

    return max(1, min(len(os.sched_getaffinity(0)), int(psutil.virtual_memory().available // MEMORY_PER_JOB)))


@dataclass
class Bench:
    """Where releases are measured.

    Attributes:
        folder: Where the folders of the environments are.
        patches: By id.
        codes: The fingerprint of each patch, by id.
        timeout: Seconds for each side of a tripwire.
    """

    folder: Path
    patches: Mapping[str, Patch]
    codes: Mapping[str, str]
    timeout: float
    _running: set[int] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def measure_all(self, tasks: Sequence[Task], jobs: int, done: Callable[[Task, Measurement], None]) -> None:
        """Measure several environments at a time, and tell of each in the calling thread when it is done.

        What is left over when the caller is interrupted is not started, and what runs is killed.
        """
        todo = iter(tasks)
        with ThreadPoolExecutor(jobs) as pool:
            futures: dict[Future[Measurement], Task] = {}
            try:
                while True:
                    for task in todo:
                        futures[pool.submit(self.measure, task)] = task
                        if len(futures) == jobs:
                            break
                    if not futures:
                        return
                    finished, _ = wait(futures, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done(futures.pop(future), future.result())
            except BaseException:
                self._kill()
                raise

    def measure(self, task: Task) -> Measurement:
        """Install an environment and run the tripwires there. A problem is part of what is returned."""
        versions = {
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "nrl-patches": __version__,
        }
        today = dt.datetime.now(dt.timezone.utc).date().isoformat()
        try:
            folders = build(task.environment, self.folder)
            told = self._tripwires(task, folders)
        except (BuildProblem, ValueError) as problem:
            return Measurement(today, versions, problem=self._in_a_line(str(problem)))
        cells = {t["id"]: self._cell(t, task.environment) for t in told}
        return Measurement(today, versions, cells)

    def _tripwires(self, task: Task, folders: Sequence[Path]) -> list[dict[str, Any]]:
        special = {k: v for name in parse_environment(task.environment) for k, v in VARIABLES.get(name, {}).items()}
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "nrl_patches.matrix.release", str(writing), str(self.timeout), *task.patches]
        with os.fdopen(reading, encoding="utf-8") as report:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, and arguments of ours
                command,
                env=variables(folders, os.environ) | special | {"NRL_PATCHES": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=(writing,),
                start_new_session=True,
            )
            os.close(writing)
            with self._lock:
                self._running.add(process.pid)
            try:
                output, _ = process.communicate()
            finally:
                with self._lock:
                    self._running.discard(process.pid)
            told = report.read()
        if not told:
            hung = process.returncode == -signal.SIGALRM
            how = f"took longer than {self.timeout:g} s" if hung else describe_end(process.returncode)
            raise ValueError(f"importing what is patched {how}; {self._in_a_line(output)}")
        tripwires: list[dict[str, Any]] = json.loads(told)["tripwires"]
        return tripwires

    def _cell(self, tripwire: Mapping[str, Any], environment: str) -> Cell:
        patch = self.patches[tripwire["id"]]
        off, on = tripwire["off"] or {}, tripwire["on"] or {}
        error = str(off.get("error") or on.get("error") or "")
        verdict, present = tripwire["verdict"], off.get("present")
        wrong = _not_measured(tripwire["installed"], parse_environment(environment))
        if wrong:
            verdict, present, error = str(Verdict.ERROR), None, wrong
        return Cell(
            verdict=verdict,
            declared=is_declared(patch, environment),
            code=self.codes[patch.id],
            present=present,
            evidence=_rounded(off.get("evidence", {})),
            patched=_rounded(on.get("evidence", {})),
            error=self._in_a_line(error),
            seconds=round(sum(side.get("seconds", 0.0) for side in (off, on)), 1),
        )

    def _in_a_line(self, text: str) -> str:
        # What was raised stands in the last line of a traceback. Where things lie on this machine is no evidence.
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        told = lines[-1] if lines else ""
        for place in (self.folder.resolve(), Path(__file__).parents[2], sys.prefix):
            told = told.replace(f"{place}/", "")
        return told if len(told) <= _LINE else f"{told[:_LINE]}…"

    def _kill(self) -> None:
        with self._lock:
            for pid in self._running:
                os.killpg(pid, signal.SIGKILL)


def _not_measured(installed: Mapping[str, str], releases: Mapping[str, Version]) -> str:
    """Say what the process saw in the place of the release that was installed for it; empty if it saw that."""
    for name, version in releases.items():
        # A CPU build calls itself 0.15.0+cpu.
        if str(version) not in {word.partition("+")[0] for word in installed.get(name, str(version)).split()}:
            return f"{name} {version} was installed, but {installed[name]} was found"
    return ""


def _rounded(evidence: Mapping[str, Any]) -> dict[str, float | str | bool]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in evidence.items()}
