"""Running the tripwires of a release: in its own environment, several releases at a time, each result kept at once."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from nrl_patches import __version__
from nrl_patches.defect import Defect
from nrl_patches.matrix.environments import VARIABLES, BuildProblem, build, variables
from nrl_patches.matrix.evidence import Cell, Measurement
from nrl_patches.matrix.names import is_declared, parse_environment
from nrl_patches.matrix.plan import Task
from nrl_patches.processes.launch import describe_end, ending_all, start_code, tail
from nrl_patches.tripwires.run import Verdict

__all__ = ["MEMORY_PER_JOB", "Bench", "jobs_here"]

MEMORY_PER_JOB = 3 * 2**30
"""Bytes that one release may take while it is measured: torch, the upstream package and a tiny model."""

_RELEASE = """
import sys
from nrl_patches.matrix.runner_child import main

main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
"""
_LONGEST = 2**24  # Bytes of a report.
_LINE = 300
_ADDRESS = re.compile(r"https?://[^\s)'\"]+")


def jobs_here() -> int:
    """Return how many releases can be measured at a time on this machine, by its processors and free memory."""
    import psutil  # noqa: PLC0415 - comes with the extra `matrix`

    free = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")  # A container's own limit, where it has one.
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int(group.joinpath(f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append(limit - used)
    return max(1, min(len(os.sched_getaffinity(0)), int(min(free) // MEMORY_PER_JOB)))


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
    patches: Mapping[str, Defect]
    codes: Mapping[str, str]
    timeout: float

    def measure_all(self, tasks: Sequence[Task], jobs: int, done: Callable[[Task, Measurement], None]) -> None:
        """Measure several environments at a time, and report each to the calling thread when it is done.

        What is left over when the caller is interrupted is not started, and what runs is killed.

        Args:
            tasks: The environments and the patches to measure there.
            jobs: How many environments are measured at the same time.
            done: Called with each task and its measurement, in the order in which they finish.

        Raises:
            BaseException: What interrupts the caller, or what ``done`` raises.
        """
        todo = iter(tasks)
        with ending_all() as end, ThreadPoolExecutor(jobs) as pool:
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
                end()
                raise

    def measure(self, task: Task) -> Measurement:
        """Install an environment and run the tripwires there. A problem is part of what is returned.

        Args:
            task: The environment and the patches to measure there.

        Returns:
            The measurement of today. Its ``problem`` says why the environment could not be installed, the ``error`` of
            a cell why a patch could not be measured.
        """
        versions = {
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "nrl-patches": __version__,
        }
        today = dt.datetime.now(dt.timezone.utc).date().isoformat()
        try:
            folders = build(task.environment, self.folder)
        except BuildProblem as problem:
            return Measurement(today, versions, problem=self._in_a_line(str(problem)))
        except Exception as problem:  # noqa: BLE001 - one release must not stop the others
            said = self._in_a_line(f"{type(problem).__name__}: {problem}")
            return Measurement(today, versions, problem=said)
        try:
            told = self._tripwires(task, folders)
        except (InterruptedError, ValueError) as problem:
            nothing = {"verdict": str(Verdict.ERROR), "off": {"error": str(problem)}, "on": None, "installed": {}}
            told = [nothing | {"id": patch_id} for patch_id in task.patches]
        cells = {t["id"]: self._cell(t, task.environment, today) for t in told}
        return Measurement(today, versions, cells)

    def _tripwires(self, task: Task, folders: Sequence[Path]) -> list[dict[str, Any]]:
        # Files rather than pipes: what a probe leaves running may hold its end open for ever.
        with tempfile.TemporaryFile(dir=self.folder) as report, tempfile.TemporaryFile(dir=self.folder) as output:
            arguments = [str(report.fileno()), str(self.timeout), *task.patches]
            started = start_code(
                _RELEASE,
                arguments,
                streams=(output, output),
                environ=self._variables(task, folders),
                pass_fds=(report.fileno(),),
                cwd=self.folder,
            )
            with started as process:
                try:
                    hung = process.wait(self.timeout * (2 * len(task.patches) + 1)) == -signal.SIGALRM
                except subprocess.TimeoutExpired:
                    hung = True
                _kill_with_children(process)
            report.seek(0)
            told = report.read(_LONGEST)
            said = tail(output)
        if not told:
            how = f"took longer than {self.timeout:g} s" if hung else describe_end(process.returncode)
            raise ValueError(f"importing what is patched {how}; {self._in_a_line(said)}")
        tripwires: list[dict[str, Any]] = json.loads(told)["tripwires"]
        return tripwires

    def _variables(self, task: Task, folders: Sequence[Path]) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        # What upstream packages cache goes where the rest of the matrix is.
        own = {name: str(home) for name in ("HOME", "HF_HOME", "TMPDIR", "XDG_CACHE_HOME")}
        special = {k: v for name in parse_environment(task.environment) for k, v in VARIABLES.get(name, {}).items()}
        # This copy of ours is found without its folder, which may be the current directory, with anything in it.
        path = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
        return variables(folders, os.environ) | own | special | path | {"NRL_PATCHES": "0"}

    def _cell(self, tripwire: Mapping[str, Any], environment: str, today: str) -> Cell:
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
            forced=not on["present"] if verdict == Verdict.UNCOVERED and on.get("present") is not None else None,
            seconds=round(sum(side.get("seconds", 0.0) for side in (off, on)), 1),
            date=today,
        )

    def _in_a_line(self, text: str) -> str:
        # What was raised stands in the last line of a traceback. Where things lie on this machine is no evidence.
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        told = lines[-1] if lines else ""
        for place in (self.folder, Path(__file__).parents[2], sys.prefix, sys.base_prefix, Path.home()):
            told = told.replace(f"{place}/", "")
        told = _ADDRESS.sub(lambda found: found[0].rpartition("/")[2], told)
        return told if len(told) <= _LINE else f"{told[:_LINE]}…"


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything that it has started, in whatever session; the process is not waited for."""
    import psutil  # noqa: PLC0415 - comes with the extra `matrix`

    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        for one in (*found.children(recursive=True), found):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _not_measured(installed: Mapping[str, str], releases: Mapping[str, Version]) -> str:
    """Say what the process saw in the place of the release that was installed for it; empty if it saw that."""
    for name, version in releases.items():
        # A CPU build calls itself 0.15.0+cpu.
        if str(version) not in {word.partition("+")[0] for word in installed.get(name, str(version)).split()}:
            return f"{name} {version} was installed, but {installed[name]} was found"
    return ""


def _rounded(evidence: Mapping[str, Any]) -> dict[str, float | str | bool]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in evidence.items()}
