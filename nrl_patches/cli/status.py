"""``nrl-patches status``: the status of every patch, here or in running processes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

import nrl_patches
from nrl_patches.cli.options import on_terminal, show
from nrl_patches.engine.affected import missing_in
from nrl_patches.engine.status import TROUBLE, State
from nrl_patches.processes.inspection import Running, descendants, is_in_trouble, look_into

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["status"]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Show every row on a terminal; elsewhere all are printed.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.option("--pid", "pids", multiple=True, type=int, help="Ask a running process; may be given several times.")
@click.option("--children", is_flag=True, help="With --pid: ask all processes that it has started as well.")
def status(*, everything: bool, as_json: bool, pids: tuple[int, ...], children: bool) -> None:
    """Print the status of every patch here, by the installed versions: nothing is imported.

    With --pid, print the statuses in running processes instead, as of their last change there, or of the last call of
    nrl_patches.status().

    Exits with 1 if a patch has drifted or failed, if nobody has measured whether it is needed, if a process named by
    --pid cannot tell, or if a child of it runs without patches although it has loaded torch.
    """
    if children and not pids:
        raise click.UsageError("--children needs --pid")
    if pids:
        sys.exit(_status_of(pids, children=children, as_json=as_json, everything=everything))
    statuses = list(nrl_patches.status().values())
    found = [dataclasses.asdict(s) | {"activated_by": nrl_patches.activated_by} for s in statuses]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif on_terminal():
        show(_table(found, everything=everything, after=f"activated by {nrl_patches.activated_by}"))
    else:
        for s in statuses:
            click.echo(f"{s.state:<14}{s.id}\n{'':14}{'; '.join((s.reason, *s.notes))}")
        click.echo(f"activated by {nrl_patches.activated_by}")
    if any(s.state in TROUBLE for s in statuses):
        sys.exit(1)


def _status_of(pids: tuple[int, ...], *, children: bool, as_json: bool, everything: bool) -> int:
    everyone = [*pids, *(child for pid in pids if children for child in descendants(pid))]
    found = [look_into(pid) for pid in dict.fromkeys(everyone)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(process) for process in found], indent=2))
    elif on_terminal():
        show(part for process in found for part in _process(process, everything=everything))
    else:
        click.echo("\n".join(map(str, found)))
    # A helper among the children may well do without, unless it is one that has use for them.
    untold = any(process.problem for process in found if process.pid in pids)
    return int(untold or any(is_in_trouble(process) for process in found))


def _table(rows: Sequence[Mapping[str, Any]], *, everything: bool, after: str = "") -> Iterator[RenderableType]:
    from nrl_patches import tables  # noqa: PLC0415 - without a terminal, nobody needs rich

    counts = Counter(str(row["state"]).replace("-", " ") for row in rows)
    folded = [] if everything else [row for row in rows if row["state"] == State.NOT_INSTALLED]
    lines = [
        tables.Line(str(row["state"]), row["id"], "\n".join((row["reason"], *row["notes"])))
        for row in rows
        if row not in folded
    ]
    summary = ", ".join(f"{counts[word]} {word}" for word in sorted(counts, key=tables.rank))
    yield tables.text(f"{len(rows)} patch{'es' * (len(rows) != 1)}: {summary}", "bold")
    yield tables.Ledger(sorted(lines, key=lambda line: tables.rank(line.word)), ("status", "patch", "", "why"))
    if folded:
        names = {name for row in folded for name in missing_in(row["reason"])}
        yield tables.fold(["not installed"] * len(folded), names)
    if after:
        yield tables.text(after, "dim")


def _process(process: Running, *, everything: bool) -> Iterator[RenderableType]:
    from nrl_patches import tables  # noqa: PLC0415 - as above

    for record in process.records:
        yield tables.text(dataclasses.replace(process, records=(record,)).told(statuses=False))
        if record["statuses"]:
            yield from _table(record["statuses"], everything=everything)
        yield ""
    if not process.records:
        yield tables.text(str(process))
        yield ""
