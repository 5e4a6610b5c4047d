"""What would leave a process of a job unpatched, found before the job runs. Used by the command only.

Each check looks at one thing and returns what it found; nothing found is good.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import nrl_patches
from nrl_patches.engine.status import TROUBLE
from nrl_patches.front_door import activation
from nrl_patches.processes.autowrapt import GROUP, NOT_EXECUTED, VARIABLE, covering
from nrl_patches.processes.inspection import look_into
from nrl_patches.processes.launch import describe_end, run_code

__all__ = [
    "TIMEOUT",
    "Finding",
    "check_autowrapt",
    "check_copies",
    "check_entry_points",
    "check_import",
    "check_interpreter",
    "check_pid",
    "check_settings",
    "check_vllm_plugins",
    "judge",
    "lenient",
    "other_environment",
]

PLUGIN = "nrl-patches"
TIMEOUT = 300
"""Seconds that any process may take that is asked."""

_HARMLESS = ("on top of ", "applied by the copy of nrl_patches in ")
"""How the notes begin that leave nobody unpatched: another party was there first, and ours lies on top."""

_ASK_INTERPRETER = f"""
import importlib.metadata, importlib.util, json, os, sys
found = {{"package": None, "version": None, "error": "", "plugins": []}}
found["autowrapt"] = importlib.util.find_spec("autowrapt") is not None
found["executed"] = "autowrapt.bootstrap" in sys.modules
spec = importlib.util.find_spec("nrl_patches")
if spec is not None:
    found["package"] = os.path.dirname(spec.origin or "")
    found["plugins"] = [e.name for e in importlib.metadata.entry_points(group="vllm.general_plugins")]
    found["startup"] = bool(importlib.metadata.entry_points(group={GROUP!r}))
    try:
        import nrl_patches
        found["version"] = nrl_patches.__version__
        nrl_patches.status()
    except Exception as error:
        found["error"] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(found))
"""

_IMPORT_FIRST = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
import nrl_patches
print(json.dumps([[s.id, s.state, s.reason, s.notes] for s in nrl_patches.status().values()]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know.

    Attributes:
        subject: What it is about: a variable, an interpreter, a patch in a process.
        found: What is the matter, as a phrase.
        next_step: What the reader can do now.
        unpatched: Whether it leaves a process, or somebody in it, without a patch.
    """

    subject: str
    found: str
    next_step: str
    unpatched: bool = True

    def __str__(self) -> str:
        """Return the finding as one line."""
        kind = "problem" if self.unpatched else "note"
        return f"{kind}: {self.subject}: found {self.found}; next step: {self.next_step}"


def check_settings(environ: Mapping[str, str]) -> list[Finding]:
    """Check that nothing is switched off, and that every variable of ours could be understood.

    Args:
        environ: The environment variables.

    Returns:
        A problem if everything is switched off; otherwise one finding per variable that could not be understood and
        one per patch that a variable disables.
    """
    registry, settings = activation().registry, activation().settings
    if not settings.enabled:
        return [Finding("NRL_PATCHES", f"{environ.get('NRL_PATCHES')!r}, which switches all off", "unset it")]
    broken = {file.problem for file in registry.broken}
    problems = [
        Finding(p.subject, f"{p.found}, not {p.expected}", p.next_step, unpatched=p in broken)
        for p in settings.problems
    ]
    all_off = len(settings.disabled) == len(registry.patches)
    return problems + [
        Finding(patch_id, f"that it is disabled: {reason}", "no action needed if intended", unpatched=all_off)
        for patch_id, reason in settings.disabled.items()
    ]


def check_vllm_plugins(environ: Mapping[str, str]) -> list[Finding]:
    """Check that vLLM may load our plugin: VLLM_PLUGINS, where it is set at all, names those that it may.

    Args:
        environ: The environment variables.

    Returns:
        One problem if ``VLLM_PLUGINS`` is set and does not name our plugin, otherwise nothing.
    """
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is None or PLUGIN in allowed.split(","):
        return []
    step = f"VLLM_PLUGINS={','.join(filter(None, (*allowed.split(','), PLUGIN)))}, or unset it"
    return [Finding("VLLM_PLUGINS", f"{allowed!r}, which excludes {PLUGIN}: vLLM's processes run unpatched", step)]


def check_entry_points() -> list[Finding]:
    """Check that hosts can find us: they ask the metadata of what is installed, not the import path.

    Returns:
        One problem if the installed metadata has no entry point of ours, otherwise nothing.
    """
    plugins = importlib.metadata.entry_points(group="vllm.general_plugins")
    if any(plugin.name == PLUGIN for plugin in plugins) and importlib.util.find_spec("nrl_patches_hosts"):
        return []
    found = "no entry points of nrl-patches: it is on the path, but not installed, and vLLM will not load it"
    return [Finding(sys.executable, found, f"{sys.executable} -m pip install nrl-patches")]


def check_autowrapt(environ: Mapping[str, str]) -> list[Finding]:
    """Check that `nrl-patches run` works here, if this environment comes from it.

    Args:
        environ: The environment variables.

    Returns:
        One problem if autowrapt is missing or its startup file is not executed, otherwise nothing.
    """
    if not _is_from_run(environ) or "autowrapt.bootstrap" in sys.modules:
        return []
    lacking = NOT_EXECUTED if importlib.util.find_spec("autowrapt") else "but autowrapt is not installed here"
    step = f'{sys.executable} -I -m pip install "nrl-patches[run]"'
    return [Finding(VARIABLE, f"that it asks for {GROUP}, {lacking}", step)]


def check_copies(path: Sequence[str]) -> list[Finding]:
    """Check that there is one version of nrl_patches on a search path, and that its metadata says the same.

    Args:
        path: The entries of a search path, as in ``sys.path``; empty ones are skipped.

    Returns:
        One problem for several versions on the path, one for metadata of another version.
    """
    entries = dict.fromkeys(str(Path(entry).resolve()) for entry in path if entry)
    copies = [copy for entry in entries if (copy := _copy_in(entry)) is not None]
    findings = []
    if len({version for _, version in copies}) > 1:
        shown = ", ".join(f"{version} in {folder}" for folder, version in copies)
        findings.append(Finding("sys.path", f"{len(copies)} copies of nrl_patches: {shown}", "remove all but one"))
    published = {d.version or "nothing" for d in importlib.metadata.distributions(name="nrl-patches", path=list(path))}
    if published - {nrl_patches.__version__}:
        found = f"version {nrl_patches.__version__}, where the metadata says {', '.join(sorted(published))}"
        findings.append(Finding(str(Path(nrl_patches.__file__).parent), found, "install nrl-patches anew"))
    return findings


def check_interpreter(python: str, environ: Mapping[str, str]) -> list[Finding]:
    """Check that another interpreter, for example that of a worker's virtual environment, has this version of us.

    Args:
        python: The interpreter, as a path or as a name on ``PATH``.
        environ: The environment variables of the job.

    Returns:
        What it lacks: the package, this version of it, the entry points, autowrapt under ``nrl-patches run``.
    """
    step = f'{python} -m pip install "nrl-patches=={nrl_patches.__version__}"'
    try:
        # Without its variable, autowrapt's startup file does nothing that shows.
        answer = _ask(python, _ASK_INTERPRETER, **covering(os.environ))
    except (OSError, ValueError) as error:
        return [Finding(python, f"no answer: {error}", "name a Python interpreter that works")]
    if answer["package"] is None:
        return [Finding(python, "no nrl_patches", step)]
    if answer["error"]:
        return [Finding(python, f"that importing nrl_patches raises {answer['error']}", step)]
    findings = []
    if answer["version"] != nrl_patches.__version__:
        found = f"nrl_patches {answer['version']}, not {nrl_patches.__version__} as here"
        findings.append(Finding(python, found, step))
    if PLUGIN not in answer["plugins"]:
        findings.append(Finding(python, "nrl_patches, but no entry point that vLLM could load", step))
    if _is_from_run(environ) and not (answer["autowrapt"] and answer["startup"] and answer["executed"]):
        lacking = NOT_EXECUTED if answer["startup"] else "but no entry points for it"
        lacking = lacking if answer["autowrapt"] else "but no autowrapt"
        step = step.replace("-m pip", "-I -m pip").replace("nrl-patches==", "nrl-patches[run]==")
        findings.append(Finding(python, f"that {VARIABLE} asks for {GROUP}, {lacking}", step))
    return findings


def other_environment(environ: Mapping[str, str]) -> str | None:
    """Return the interpreter of the activated virtual environment if that is not the one this process runs in.

    Args:
        environ: The environment variables; ``VIRTUAL_ENV`` is read.
    """
    active = environ.get("VIRTUAL_ENV")
    if not active or Path(active).resolve() == Path(sys.prefix).resolve():
        return None
    python = Path(active, "bin", "python")
    return str(python) if python.exists() else None


def check_pid(pid: int, *, named: bool = True) -> list[Finding]:
    """Check what a running process tells of its patches; one that the user has not named may have nothing to tell.

    Args:
        pid: The process.
        named: Whether the user has named it; the children of a named process are not.

    Returns:
        A missing record, a failed import, and each status and note that leaves the process unpatched.
    """
    process = look_into(pid)
    if process.problem and (named or process.unpatched):
        return [Finding(f"process {pid} ({process.command})", process.problem, "import nrl_patches there, and restart")]
    findings = []
    for record in process.records:
        if record.get("failure"):
            last = record["failure"].rstrip().splitlines()[-1]
            findings.append(
                Finding(
                    f"process {pid}",
                    f"that importing nrl_patches raised {last}",
                    "reinstall nrl-patches in that environment, and restart the process",
                )
            )
        findings += [Finding(f"process {pid}", note, "restart the process") for note in record.get("notes", ())]
        rows = [(s["id"], s["state"], s["reason"], s["notes"]) for s in record["statuses"]]
        findings += judge(f"process {pid}", rows, "import nrl_patches first, before anything else")
    return findings


def check_import(modules: Iterable[str]) -> list[Finding]:
    """Check what remains of our patches where modules are imported before us, each in a fresh process.

    Args:
        modules: The absolute names of the modules.

    Returns:
        What the patches cannot reach or what has drifted or failed, per module; one problem for a module that cannot be
        imported.
    """
    findings = []
    for module in modules:
        subject = f"import {module}, nrl_patches"
        try:
            rows = _ask("", _IMPORT_FIRST, module)
        except (OSError, ValueError) as error:
            step = f"run `{sys.executable} -c 'import {module}, nrl_patches'`"
            if _is_here(module):
                step = (
                    "PYTHONPATH=. if the module of the current directory is meant, which is not looked into otherwise"
                )
            findings.append(Finding(subject, f"no answer: {error}", step))
            continue
        findings += judge(subject, rows, "import nrl_patches first, before anything else")
    return findings


def _is_from_run(environ: Mapping[str, str]) -> bool:
    return GROUP in [name.strip() for name in environ.get(VARIABLE, "").split(",")]


def judge(subject: str, rows: Iterable[Sequence[Any]], step: str) -> list[Finding]:
    """Return what is the matter by the statuses of a process.

    Args:
        subject: The process.
        rows: The id, the state, the reason and the notes of each patch.
        step: What to do about a note that leaves somebody unpatched.

    Returns:
        One problem per patch that has drifted or failed, and one finding per note.
    """
    findings = []
    for patch_id, state, reason, notes in rows:
        if state in TROUBLE:
            findings.append(
                Finding(f"{subject}: {patch_id}", f"{state}: {reason}", f"`nrl-patches explain {patch_id}`")
            )
        for note in notes:
            harmless = note.startswith(_HARMLESS)
            todo = "no action needed if intended" if harmless else step
            findings.append(Finding(f"{subject}: {patch_id}", note, todo, unpatched=not harmless))
    return findings


def lenient(environ: Mapping[str, str], **variables: str) -> dict[str, str]:
    """Return the variables for a process that is to tell of problems and not to fail at the first one.

    Args:
        environ: The variables of this process; ``NRL_PATCHES_STRICT`` is left out.
        variables: What to set in addition.
    """
    return {name: value for name, value in environ.items() if name != "NRL_PATCHES_STRICT"} | variables


def _ask(python: str, script: str, *args: str, **variables: str) -> Any:
    # Notes and warnings go to stderr; what a module prints when it is imported comes before the last line.
    environ = lenient(os.environ, **variables)
    done = run_code(script, args, timeout=TIMEOUT, python=python, environ=environ, apart=True)
    said = [line for line in done.errors.splitlines() if line.strip()]
    if done.code is None:
        raise ValueError(f"none within {TIMEOUT} s")
    if done.code:
        raise ValueError(said[-1] if said else describe_end(done.code))
    return json.loads((done.output.splitlines() or [""])[-1])


def _is_here(module: str) -> bool:
    top = module.partition(".")[0]
    return Path(top).is_dir() or Path(f"{top}.py").exists()


def _copy_in(entry: str) -> tuple[str, str] | None:
    """Return the folder of the nrl_patches in an entry of the path, which may be an archive, and its version."""
    spec = PathFinder.find_spec("nrl_patches", [entry])
    get_source: Callable[[str], str | None] | None = getattr(spec and spec.loader, "get_source", None)
    if spec is None or not spec.origin or get_source is None:
        return None
    try:
        text = get_source("nrl_patches") or ""
    except (OSError, ImportError):
        return None
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return str(Path(spec.origin).parent), found[1] if found else "a version that cannot be read"
