"""All tripwires of one release, run in its environment by an interpreter that ``runner.py`` starts.

Writes the JSON report of ``nrl-patches tripwires`` to a file descriptor. The difference: the sides without a patch are
forks of one process that has imported the targets, since importing them again for each patch is what a matrix would
spend its time on. A side with a patch stays a process of its own, in which the patch is applied as a user's is.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal

from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.registry import load_defects
from nrl_patches.tripwires.reports import as_json
from nrl_patches.tripwires.run import run_tripwire
from nrl_patches.tripwires.sides import run_side_in_fork

__all__ = ["main"]


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
    off = {patch.id: run_side_in_fork(patch, timeout) for patch in patches}
    outcomes = [run_tripwire(patch, timeout=timeout, off=off[patch.id]) for patch in patches]
    with os.fdopen(report_fd, "w", encoding="utf-8") as report:
        report.write(as_json(outcomes, ()))
