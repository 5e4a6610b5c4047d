"""All tripwires of one release, run in its environment by an interpreter that ``measurement.py`` starts.

Writes the JSON report of ``nrl-patches tripwires`` to a file descriptor. The difference: the sides without a patch are
forks of one process that has imported the targets, since importing them again for each patch is what a matrix would
spend its time on. A side with a patch stays a process of its own, in which the patch is applied as a user's is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import select
import signal
import time
import traceback

from nrl_patches.defect import Defect
from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.registry import load_defects
from nrl_patches.processes.launch import describe_end
from nrl_patches.processes.lifeline import end_with_the_starter
from nrl_patches.tripwires.reports import as_json
from nrl_patches.tripwires.run import Side, run_tripwire

__all__ = ["main", "observe_in_fork"]

_TAIL = 2000


def main(report_fd: int, timeout: float, ids: list[str]) -> None:
    """Run the tripwires of some patches and write the report.

    Args:
        report_fd: Where the report goes; what upstream packages print goes elsewhere.
        timeout: Seconds for each side.
        ids: The patches. This process must have been started with ``NRL_PATCHES=0``.
    """
    known = {**default_activation().registry.patches, **load_defects()[0]}
    patches = [known[patch_id] for patch_id in ids]
    signal.alarm(math.ceil(timeout))
    for module in {fix.module for patch in patches for fix in patch.fixes}:
        # A probe that needs it raises the error again.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    signal.alarm(0)
    off = {patch.id: observe_in_fork(patch, timeout) for patch in patches}
    outcomes = [run_tripwire(patch, timeout=timeout, off=off[patch.id]) for patch in patches]
    with os.fdopen(report_fd, "w", encoding="utf-8") as report:
        report.write(as_json(outcomes, ()))


def observe_in_fork(patch: Defect, timeout: float) -> Side:
    """Run the probe of a patch in a fork of this process, which stays as it is.

    Args:
        patch: The patch.
        timeout: Seconds after which the fork is killed.

    Returns:
        What the probe saw; without an answer, how the fork ended.
    """
    reading, writing = os.pipe()
    lifeline, held = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(held)
        os.setsid()
        end_with_the_starter(lifeline)
        _answer(patch, writing)
    os.close(lifeline)
    os.close(writing)
    # Waiting for the end of the process, not of the pipe: what the probe started and left behind may hold that open.
    process = os.pidfd_open(pid)
    ended, _, _ = select.select([process], [], [], timeout)
    os.close(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(held)
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb", buffering=0) as answer:
        told = answer.read() if ended else b""
    seconds = time.monotonic() - start
    if told:
        return Side(**json.loads(told), seconds=seconds)
    how = describe_end(os.waitstatus_to_exitcode(status)) if ended else f"took longer than {timeout:g} s and was killed"
    return Side(None, seconds=seconds, error=f"the probe {how}")


def _answer(patch: Defect, writing: int) -> None:
    try:
        seen = patch.observe()
        told: dict[str, object] = {"present": seen.present, "evidence": dict(seen.evidence), "status": "disabled"}
    except BaseException:  # noqa: BLE001 - the fork must end here, whatever a probe raises
        told = {"present": None, "error": traceback.format_exc()[-_TAIL:]}
    # Far below what a pipe holds, so the write does not block.
    os.write(writing, json.dumps(told).encode())
    os._exit(0)
