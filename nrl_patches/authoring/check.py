"""Checks one patch on the installed release, as the contract test does on all, and explains what is wrong."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nrl_patches.contributed import VARIABLE
from nrl_patches.declaration import Patch
from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.affected import Answer
from nrl_patches.engine.decision import decide
from nrl_patches.engine.rewriting import Rewrite
from nrl_patches.engine.targets import locate, mark_of
from nrl_patches.processes.launch import describe_end, run_code
from nrl_patches.tripwires.run import missing_for
from nrl_patches.tripwires.sides import TIMEOUT, Side, run_side

__all__ = ["Step", "check_patch", "permutations"]

_PERMUTATIONS = """
import json, sys
from nrl_patches.authoring.check import permutations
print(json.dumps(permutations(sys.argv[1])))
"""
_WRONG_BUILD = (
    "the function below `@patch.fix` takes the original and returns the function that is called in its place; it is "
    "not that function itself"
)
_HINTS = (
    (r"NotImplementedError", "the probe is not written yet: replace the `raise` by what shows the defect"),
    (r"must return an Observation, not NoneType", "the probe returns nothing: end it with `return Observation(…)`"),
    (r"missing \d+ required .*argument|takes \d+ positional arguments? but", _WRONG_BUILD),
    (r"must build a new plain function", _WRONG_BUILD),
    (r"ModuleNotFoundError", "the probe imports what is not installed here"),
)


@dataclass(frozen=True)
class Step:
    """One thing that was checked.

    Attributes:
        name: What.
        problem: What is wrong with it; empty if nothing is.
        hint: What to do about it.
    """

    name: str
    problem: str = ""
    hint: str = ""


def check_patch(patch_id: str, timeout: float = TIMEOUT) -> Iterator[Step]:
    """Check a patch, and stop at the first thing that makes the rest pointless.

    Args:
        patch_id: The patch.
        timeout: Seconds for each process.

    Yields:
        What was checked, as soon as it is known.
    """
    registry = default_activation().registry
    broken = next((file for file in registry.broken if file.id == patch_id), None)
    if broken is not None or patch_id not in registry.patches:
        what = f"{broken.file}: {type(broken.error).__name__}: {broken.error}" if broken else "no file of that id"
        yield Step("the file is loaded", what, "mend what that says" if broken else "`nrl-patches list` shows every id")
        return
    patch = registry.patches[patch_id]
    yield Step("the file is loaded, with every field and heading")
    missing = missing_for(patch)
    if missing:
        yield Step("its distributions are installed", f"no {', '.join(missing)}", "check it where they are")
        return
    decision = decide(patch)
    here = "" if decision.answer in {Answer.YES, Answer.UNDECIDED} else decision.reason
    yield Step(
        "the installed release is affected", here, "widen `affected`, or check it on a release that has the defect"
    )
    if not here:
        yield from _sides(patch, timeout)


def _sides(patch: Patch, timeout: float) -> Iterator[Step]:
    off = run_side(patch.id, patched=False, timeout=timeout)
    name = "without the patch, the probe shows the defect"
    if not off.present:
        absent = "the probe says that the defect is not there"
        yield Step(
            name,
            _last_line(off) or absent,
            _hint(off) or "let the probe show it, or take the release out of `affected`",
        )
        return
    yield Step(name)
    on = run_side(patch.id, patched=True, timeout=timeout)
    yield Step("with the patch, it is applied", *_not_applied(patch, on))
    if on.status not in {"", "applied"}:  # Then it cannot have repaired anything.
        return
    yield Step("with the patch, the probe does not show the defect", *_still_there(on))
    if on.status:
        yield from _permuted(patch, timeout)


def _not_applied(patch: Patch, on: Side) -> tuple[str, str]:
    if on.status == "applied":
        return "", ""
    if not on.status:
        return _last_line(on), _hint(on)
    reason = on.reason or f"it is {on.status}"
    if any(isinstance(fix.build, Rewrite) for fix in patch.fixes) and on.status == "drifted":
        return f"{on.status}: {reason}", "`old` of an `Edit` is whole lines of the target, and they are there once"
    hints = {
        "drifted": "the guard objects to the installed code, or the target has another name",
        "pending": f"the probe does not import {', '.join(sorted({fix.module for fix in patch.fixes}))}",
    }
    found = next((hint for pattern, hint in _HINTS if re.search(pattern, reason)), hints.get(on.status, ""))
    return f"{on.status}: {reason}", found


def _still_there(on: Side) -> tuple[str, str]:
    if on.present is None:
        return _last_line(on), _hint(on)
    return ("it does", "the fix does not repair what the probe looks at") if on.present else ("", "")


def _permuted(patch: Patch, timeout: float) -> Iterator[Step]:
    environ = {name: value for name, value in os.environ.items() if name == VARIABLE or not name.startswith("NRL_")}
    done = run_code(
        _PERMUTATIONS, [patch.id], timeout=timeout, environ=environ | {"NRL_PATCHES_ONLY": patch.id}, apart=True
    )
    if done.code != 0:
        said = [line for line in done.errors.splitlines() if line.strip()]
        how = f"took longer than {timeout:g} s" if done.code is None else describe_end(done.code)
        yield Step("it is undone and applied again", said[-1] if said else f"the process {how}")
        return
    for name, problem, hint in json.loads(done.output.splitlines()[-1]):
        yield Step(name, problem, hint)


def permutations(patch_id: str) -> list[tuple[str, str, str]]:
    """Apply a patch, undo it and apply it again, in this process.

    Args:
        patch_id: The patch.

    Returns:
        The name of each thing that was checked, what is wrong with it (empty if nothing is), and what to do.
    """
    import nrl_patches  # noqa: PLC0415 - activates, in a process of its own only

    patch = default_activation().registry.patches[patch_id]
    modules = {fix.module: importlib.import_module(fix.module) for fix in patch.fixes}
    found: list[tuple[str, str, str]] = []
    for fix in (fix for fix in patch.fixes if fix.qualname):
        site = locate(modules[fix.module], fix)
        mark = mark_of(site.function)
        pristine = mark.pristine if mark else site.function
        if inspect.signature(site.function) != inspect.signature(pristine):
            problem = f"{inspect.signature(site.function)}, not {inspect.signature(pristine)}"
            found.append((f"{fix.target} keeps its signature", problem, "do not set `__signature__` in the fix"))
        with nrl_patches.undo(patch_id):
            restored = locate(modules[fix.module], fix).function is pristine
        again = mark_of(locate(modules[fix.module], fix).function) is not None
        problem = "" if restored and again else "not put back" if not restored else "not applied again"
        found.append((f"{fix.target} is undone and applied again", problem, ""))
    return found


def _last_line(side: Side) -> str:
    lines = [line.strip() for line in side.error.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (errors or lines)[-1] if lines else ""


def _hint(side: Side) -> str:
    return next((hint for pattern, hint in _HINTS if re.search(pattern, side.error)), "")
