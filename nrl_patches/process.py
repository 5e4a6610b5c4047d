"""What this process is to the others of its job: the children that it covers, and the record that it keeps."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import replace
from pathlib import PurePath

from nrl_patches.activation import Activation
from nrl_patches.children import activation_path, cover_children, parent_version
from nrl_patches.errors import explain_problem
from nrl_patches.record import ProcessRecord
from nrl_patches.replacement import PROCESS_LOCK
from nrl_patches.settings import VARIABLES
from nrl_patches.status import State, Status
from nrl_patches.telling import tell

__all__ = ["join"]


@functools.cache
def join(activation: Activation, version: str) -> None:
    """Keep a record of an activation and cover the children of this process. Acts once, and not under NRL_PATCHES=0.

    Args:
        activation: One that has been started.
        version: That of this package.
    """
    if not activation.settings.enabled:
        return
    notes = _explain_parent(version)
    for note in notes:
        tell(logging.WARNING, note)
    record = ProcessRecord()
    seen: dict[str, tuple[Status, Status]] = {}  # What was remembered of a patch, and was found to be otherwise.

    def statuses() -> list[Status]:
        # As they are remembered: looking anew is left to those who want to know, and counts until the next change.
        broken = [Status(file.id, State.FAILED, str(file)) for file in activation.registry.broken]
        looked = [(status, seen.get(status.id, (None, status))) for status in activation.remembered()]
        return broken + [found if status == then else status for status, (then, found) in looked]

    def publish() -> None:
        record.publish(
            {
                "version": version,
                "package": str(PurePath(__file__).parent),
                "activated_by": activation_path(),
                "strict": activation.settings.strict,
                "notes": notes,
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
    cover_children(version, disabled, variables, strict=activation.settings.strict)


def _explain_parent(version: str) -> list[str]:
    parent = parent_version()
    if parent in {None, version}:
        return []
    return [
        explain_problem(
            f"process {os.getpid()}",
            expected=f"nrl_patches {parent}, as in the parent process",
            found=f"nrl_patches {version} in {PurePath(__file__).parent}",
            next_step="if the package was upgraded while the job runs, restart the job; else `nrl-patches doctor`",
        )
    ]
