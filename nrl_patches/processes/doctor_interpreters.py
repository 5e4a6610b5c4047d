"""What another interpreter, or a fresh process of this one, says of the patches: asked by `doctor`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nrl_patches
from nrl_patches.processes.autowrapt import GROUP, NOT_EXECUTED, VARIABLE, covering
from nrl_patches.processes.doctor import PLUGIN, TIMEOUT, Finding, is_from_run, judge, lenient
from nrl_patches.processes.launch import describe_end, run_code

__all__ = ["check_import", "check_interpreter", "other_environment"]

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
    if is_from_run(environ) and not (answer["autowrapt"] and answer["startup"] and answer["executed"]):
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
