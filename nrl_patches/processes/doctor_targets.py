"""The status of the patches of the installed releases, found by importing their targets in a separate process."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import nrl_patches
from nrl_patches.bootstrap import activation
from nrl_patches.declaration import Patch
from nrl_patches.engine.affected import Answer
from nrl_patches.engine.decision import decide
from nrl_patches.processes.doctor import TIMEOUT, Finding, judge, lenient
from nrl_patches.processes.launch import Ended, describe_end, run_code

__all__ = ["Looked", "check_targets", "look"]

_CODE = "import sys; from nrl_patches.processes.doctor_targets import look; look(int(sys.argv[1]), sys.argv[2:])"
_LONGEST = 2**22  # Bytes of an answer.


@dataclass(frozen=True)
class Looked:
    """What was looked at, and what was found.

    Attributes:
        ids: The patches whose targets were imported.
        findings: What is the matter with them.
        seconds: How long that took.
    """

    ids: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return what was looked at, as a sentence."""
        if not self.ids:
            return "No target was imported: no patch that is switched on is about an installed release."
        count = f"{len(self.ids)} patch{'es' * (len(self.ids) > 1)}"
        return f"The targets of {count} were imported ({self.seconds:.1f} s): {', '.join(self.ids)}."


def check_targets() -> Looked:
    """Import the targets of every patch that is on and whose releases are installed, with the patches, elsewhere.

    Returns:
        The patches looked at, what was found, and the seconds that it took; nothing if no patch is due here.
    """
    patches = [patch for patch in activation().registry if _is_due(patch)]
    if not patches:
        return Looked()
    modules = list(dict.fromkeys(fix.module for patch in patches for fix in patch.fixes))
    with tempfile.TemporaryFile() as report:
        fd = report.fileno()
        done = run_code(
            _CODE, [str(fd), *modules], timeout=TIMEOUT, environ=lenient(os.environ), pass_fds=[fd], apart=True
        )
        report.seek(0)
        answer = list(_lines(report.read(_LONGEST)))
    findings = list(_findings(patches, modules, answer, done))
    return Looked(tuple(patch.id for patch in patches), findings, done.seconds)


def look(report_fd: int, modules: Iterable[str]) -> None:
    """Import modules with the patches; report on each, and finally the status of every patch.

    Args:
        report_fd: Where that is written, an object in a line.
        modules: Their names.
    """
    with os.fdopen(report_fd, "w", encoding="utf-8") as report:

        def tell(**told: Any) -> None:
            print(json.dumps(told), file=report, flush=True)

        for module in modules:
            tell(begun=module)
            try:
                importlib.import_module(module)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - one target must not hide the others
                moved = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
                tell(failed=module, error=f"{type(error).__name__}: {error}", moved=moved)
        tell(rows=[[s.id, s.state, s.reason, s.notes] for s in nrl_patches.status().values()])


def _is_due(patch: Patch) -> bool:
    settings = activation().settings
    if patch.id in settings.disabled:
        return False
    return patch.id in settings.forced or decide(patch).answer in {Answer.YES, Answer.UNDECIDED}


def _findings(
    patches: Sequence[Patch], modules: Sequence[str], answer: Sequence[dict[str, Any]], done: Ended
) -> Iterator[Finding]:
    users = {m: [p.id for p in patches if m in {fix.module for fix in p.fixes}] for m in modules}
    for told in answer:
        if "failed" in told:
            yield _explain_failure(told, users[told["failed"]])
    rows = [told["rows"] for told in answer if "rows" in told]
    if rows:
        # Nobody was there before us, so what the patches cannot reach was made by the upstream package itself.
        ours = [row for row in rows[0] if any(row[0] in ids for ids in users.values())]
        yield from judge("import of the targets", ours, "report it to the authors of nrl-patches")
        return
    begun = [told["begun"] for told in answer if "begun" in told]
    ended = f"took longer than {TIMEOUT} s" if done.code is None else describe_end(done.code)
    said = next((line for line in reversed(done.errors.splitlines()) if line.strip()), "")
    where = f"import of {begun[-1]}" if begun else "import of nrl_patches"
    left = [i for m in modules[max(0, len(begun) - 1) :] for i in users[m]]
    found = f"that the process {ended}{': ' * bool(said)}{said}; not looked at: {', '.join(dict.fromkeys(left))}"
    yield Finding(where, found, f"run `{sys.executable} -c 'import {begun[-1] if begun else 'nrl_patches'}'`")


def _explain_failure(told: dict[str, Any], ids: Sequence[str]) -> Finding:
    module, error = told["failed"], told["error"]
    if told["moved"]:
        found = f"no such module, although the release is affected, so these are never applied: {', '.join(ids)}"
        return Finding(module, found, f"`nrl-patches tripwires {' '.join(ids)}`")
    # Who cannot import the target cannot use it unpatched either.
    found = f"that it cannot be imported here, so {', '.join(ids)} could not be checked: {error}"
    return Finding(module, found, f"run `{sys.executable} -c 'import {module}'`", unpatched=False)


def _lines(answer: bytes) -> Iterator[dict[str, Any]]:
    for line in answer.splitlines():
        with suppress(ValueError):  # It was killed in the middle of one.
            yield json.loads(line)
