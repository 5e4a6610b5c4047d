"""What would leave a process of a job unpatched, found before the job runs. Used by the command only.

Each check looks at one thing and returns what it found; nothing found is good.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import nrl_patches
from nrl_patches.bootstrap import activation
from nrl_patches.engine.status import TROUBLE
from nrl_patches.processes.autowrapt import GROUP, NOT_EXECUTED, VARIABLE
from nrl_patches.processes.inspection import look_into

__all__ = [
    "PLUGIN",
    "TIMEOUT",
    "Finding",
    "check_autowrapt",
    "check_copies",
    "check_entry_points",
    "check_pid",
    "check_settings",
    "check_vllm_plugins",
    "is_from_run",
    "judge",
    "lenient",
]

PLUGIN = "nrl-patches"
TIMEOUT = 300
"""Seconds that any process may take that is asked."""

_HARMLESS = ("on top of ", "applied by the copy of nrl_patches in ")
"""The prefixes of notes that leave no reference unpatched: a third party was first, and our patch is on top."""


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know.

    Attributes:
        subject: What it is about: a variable, an interpreter, a patch in a process.
        found: What is the matter, as a phrase.
        next_step: What the reader can do now.
        unpatched: Whether it leaves a process, or references in it, without a patch.
    """

    subject: str
    found: str
    next_step: str
    unpatched: bool = True

    @property
    def kind(self) -> str:
        """In a word: ``problem`` or ``note``."""
        return "problem" if self.unpatched else "note"

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.kind}: {self.subject}: found {self.found}; next step: {self.next_step}"


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
    if not is_from_run(environ) or "autowrapt.bootstrap" in sys.modules:
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
        findings.append(Finding(str(Path(nrl_patches.__file__).parent), found, "reinstall nrl-patches"))
    return findings


def check_pid(pid: int, *, named: bool = True) -> list[Finding]:
    """Check the record of a running process; one that the user has not named need not have a record.

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


def is_from_run(environ: Mapping[str, str]) -> bool:
    """Return whether an environment asks for the patches as `nrl-patches run` does.

    Args:
        environ: The environment variables.
    """
    return GROUP in [name.strip() for name in environ.get(VARIABLE, "").split(",")]


def judge(subject: str, rows: Iterable[Sequence[Any]], step: str) -> list[Finding]:
    """Return what is the matter by the statuses of a process.

    Args:
        subject: The process.
        rows: The id, the state, the reason and the notes of each patch.
        step: What to do about a note that leaves references unpatched.

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
    """Return the variables for a process that must report problems rather than fail at the first one.

    Args:
        environ: The variables of this process; ``NRL_PATCHES_STRICT`` is left out.
        variables: What to set in addition.
    """
    return {name: value for name, value in environ.items() if name != "NRL_PATCHES_STRICT"} | variables


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
