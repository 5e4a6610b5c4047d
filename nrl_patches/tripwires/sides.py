"""One side of a tripwire: the probe of a patch in a process of its own, with the patch or without it.

Used by tripwires, the matrix, `check` and `demo`; never by ``import nrl_patches``.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

from nrl_patches.contributed import VARIABLE
from nrl_patches.defect import Defect
from nrl_patches.engine.activation import default_activation
from nrl_patches.processes.launch import Ended, describe_end, run_code, run_in_fork

__all__ = ["TIMEOUT", "Side", "run_side", "run_side_in_fork"]

TIMEOUT = 60.0
"""Seconds that one side may take by default, the import of the upstream packages included."""

_TAIL = 2000
_LONGEST = 2**20  # Bytes of an answer.
_COMMAND = "from nrl_patches.cli.main import main; main(prog_name='nrl-patches')"


@dataclass(frozen=True)
class Side:
    """What one process saw.

    Attributes:
        present: Whether the defect was there; None if the probe did not get that far.
        evidence: What the probe measured.
        status: The status word of the patch in that process.
        seconds: How long the process took.
        error: What went wrong, with the end of the process's output; empty if nothing did.
        reason: The sentence behind the status word.
    """

    present: bool | None
    evidence: Mapping[str, float | str | bool] = field(default_factory=dict)
    status: str = ""
    seconds: float = 0.0
    error: str = ""
    reason: str = ""


def run_side(patch_id: str, *, patched: bool, forced: bool = False, timeout: float = TIMEOUT) -> Side:
    """Run the probe of a patch in a process of its own, with this patch alone or with none.

    A process that hangs, crashes or exits early has no opinion; the side then says what happened.

    Args:
        patch_id: The patch.
        patched: Whether the patch is applied in that process.
        forced: Whether it is applied whatever the versions say.
        timeout: Seconds that the process may take before it is killed.

    Returns:
        What the probe saw; ``present`` is None where it gave no answer, and ``error`` says why.
    """
    opt_outs = {patch.opt_out for patch in default_activation().registry}
    environ = {
        name: value
        for name, value in os.environ.items()
        if name == VARIABLE or not (name.startswith(("NRL_PATCHES", "NRL_DISABLE_")) or name in opt_outs)
    }
    environ |= {"NRL_PATCHES_ONLY": patch_id} if patched else {"NRL_PATCHES": "0"}
    environ |= {"NRL_PATCHES_FORCE": patch_id} if forced else {}
    with tempfile.TemporaryFile() as report:
        fd = report.fileno()
        ended = run_code(
            _COMMAND, ["probe", patch_id, "--report-fd", str(fd)], timeout=timeout, environ=environ, pass_fds=[fd]
        )
        report.seek(0)
        answer = report.read(_LONGEST)
    return _side(answer, ended, timeout)


def run_side_in_fork(patch: Defect, timeout: float) -> Side:
    """Run the probe of a patch in a fork of this process, which stays as it is: it has no patch, and saves the imports.

    Args:
        patch: The patch.
        timeout: Seconds after which the fork is killed.

    Returns:
        What the probe saw; without an answer, how the fork ended.
    """

    def answer() -> bytes:
        try:
            seen = patch.observe()
        except BaseException:  # noqa: BLE001 - whatever a probe raises, SystemExit too, is what there is to report
            return json.dumps({"error": traceback.format_exc()[-_TAIL:]}).encode()
        return json.dumps({"present": seen.present, "evidence": dict(seen.evidence), "status": "disabled"}).encode()

    ended, told = run_in_fork(answer, timeout)
    return _side(told, ended, timeout)


def _side(answer: bytes, ended: Ended, timeout: float) -> Side:
    """Read the answer of a probe; without one, say how its process ended."""
    try:
        told = json.loads(answer)
        if "error" in told:
            return Side(None, error=told["error"], seconds=ended.seconds)
        return Side(
            told["present"], told["evidence"], told["status"], ended.seconds, reason=str(told.get("reason", ""))
        )
    except (LookupError, TypeError, ValueError, RecursionError):
        how = f"took longer than {timeout:g} s and was killed" if ended.code is None else describe_end(ended.code)
        output = f"; the end of its output:\n{ended.output[-_TAIL:]}" if ended.output else ""
        return Side(None, seconds=ended.seconds, error=f"the probe {how}{output}")
