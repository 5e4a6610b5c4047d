"""Publishes the record of this process, and carries the patches into the children that it starts."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import replace
from pathlib import PurePath

from nrl_patches.engine.activation import Activation
from nrl_patches.engine.log import tell
from nrl_patches.engine.settings import VARIABLES
from nrl_patches.engine.slots import PROCESS_LOCK
from nrl_patches.engine.status import State, Status
from nrl_patches.errors import Problem
from nrl_patches.processes.record import ProcessRecord
from nrl_patches.processes.spawn import Carried, activation_path, carry, parent_version

__all__ = ["attach"]


@functools.cache
def attach(activation: Activation, version: str, *, replaced: bool = False) -> None:
    """Keep a record of an activation and cover the children of this process. Acts once, and not under NRL_PATCHES=0.

    Args:
        activation: One that has been started.
        version: That of this package.
        replaced: Whether its files are no longer those of that version.
    """
    if not activation.settings.enabled:
        return
    notes = [*_explain_parent(version), *([_explain_upgrade(version)] if replaced else [])]
    for note in notes:
        tell(logging.WARNING, note)
    record = ProcessRecord()
    seen: dict[str, tuple[Status, Status]] = {}  # What was remembered of a patch, and was found to be otherwise.

    def statuses() -> list[Status]:
        # As they are remembered: only status() looks again, and its result counts until the next change.
        broken = [Status(file.id, State.FAILED, str(file)) for file in activation.registry.broken]
        looked = [(status, seen.get(status.id, (None, status))) for status in activation.remembered()]
        return broken + [found if status == then else status for status, (then, found) in looked]

    def publish() -> None:
        record.publish(
            {
                "version": version,
                "package": str(PurePath(__file__).parents[1]),
                "activated_by": activation_path(),
                "strict": activation.settings.strict,
                "notes": [str(note) for note in notes],
                "statuses": [
                    {"id": s.id, "state": str(s.state), "reason": s.reason, "notes": s.notes} for s in statuses()
                ],
            }
        )

    def see(remembered: list[Status], found: dict[str, Status]) -> None:
        with PROCESS_LOCK:
            before = statuses()
            seen.update({s.id: (s, replace(found[s.id], traceback="")) for s in remembered})
            if statuses() != before:
                publish()

    def disabled() -> dict[str, str]:
        return {s.id: s.reason for s in activation.remembered() if s.state is State.DISABLED}

    with PROCESS_LOCK:  # Another thread may be importing a target already.
        activation.on_change, activation.on_status = publish, see
        publish()
    variables = (*VARIABLES, *dict.fromkeys(patch.opt_out for patch in activation.registry))
    carry(Carried(version, disabled, variables, activation.settings.strict))


def _explain_upgrade(version: str) -> Problem:
    return Problem(
        f"process {os.getpid()}",
        expected=f"the files of nrl_patches {version}, which this process has imported",
        found=f"others in {PurePath(__file__).parents[1]}, put there before the first target was imported here",
        next_step="restart the job: this process now runs parts of two versions",
    )


def _explain_parent(version: str) -> list[Problem]:
    parent = parent_version()
    if parent in {None, version}:
        return []
    return [
        Problem(
            f"process {os.getpid()}",
            expected=f"nrl_patches {parent}, as in the parent process",
            found=f"nrl_patches {version} in {PurePath(__file__).parents[1]}",
            next_step="if the package was upgraded while the job runs, restart the job; else `nrl-patches doctor`",
        )
    ]
