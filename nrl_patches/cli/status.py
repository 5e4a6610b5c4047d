"""``nrl-patches status``: the status of every patch, here or in running processes."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

import nrl_patches
from nrl_patches.engine.status import TROUBLE
from nrl_patches.processes.inspection import descendants, is_in_trouble, look_into

__all__ = ["status"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.option("--pid", "pids", multiple=True, type=int, help="Ask a running process; may be given several times.")
@click.option("--children", is_flag=True, help="With --pid: ask all processes that it has started as well.")
def status(*, as_json: bool, pids: tuple[int, ...], children: bool) -> None:
    """Print the status of every patch here, by the installed versions: nothing is imported.

    With --pid, print the statuses in running processes instead, as of their last change there, or of the last call of
    nrl_patches.status().

    Exits with 1 if a patch has drifted or failed, if nobody has measured whether it is needed, if a process named by
    --pid cannot tell, or if a child of it runs without patches although it has loaded torch.
    """
    if children and not pids:
        raise click.UsageError("--children needs --pid")
    if pids:
        sys.exit(_status_of(pids, children=children, as_json=as_json))
    statuses = nrl_patches.status().values()
    if as_json:
        found = [dataclasses.asdict(s) | {"activated_by": nrl_patches.activated_by} for s in statuses]
        click.echo(json.dumps(found, indent=2))
    for s in () if as_json else statuses:
        click.echo(f"{s.state:<14}{s.id}\n{'':14}{'; '.join((s.reason, *s.notes))}")
    if not as_json:
        click.echo(f"activated by {nrl_patches.activated_by}")
    if any(s.state in TROUBLE for s in statuses):
        sys.exit(1)


def _status_of(pids: tuple[int, ...], *, children: bool, as_json: bool) -> int:
    everyone = [*pids, *(child for pid in pids if children for child in descendants(pid))]
    found = [look_into(pid) for pid in dict.fromkeys(everyone)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(process) for process in found], indent=2))
    else:
        click.echo("\n".join(map(str, found)))
    # A helper among the children may well do without, unless it is one that has use for them.
    untold = any(process.problem for process in found if process.pid in pids)
    return int(untold or any(is_in_trouble(process) for process in found))
