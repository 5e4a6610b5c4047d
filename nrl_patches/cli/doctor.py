"""``nrl-patches doctor``: what would leave a process of a job unpatched."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from nrl_patches.cli.options import on_terminal, show
from nrl_patches.matrix.evidence import Evidence
from nrl_patches.matrix.freshness import age, beyond_evidence
from nrl_patches.processes import doctor as checks
from nrl_patches.processes.doctor_interpreters import check_import, check_interpreter, other_environment
from nrl_patches.processes.doctor_overlaps import check_overlaps
from nrl_patches.processes.doctor_targets import check_targets
from nrl_patches.processes.inspection import descendants

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["doctor"]

_NOTHING = "Nothing found that would leave a process unpatched."


@click.command()
@click.option("--python", "pythons", multiple=True, metavar="PATH", help="Look into this interpreter too.")
@click.option("--pid", "pids", multiple=True, type=int, help="Ask a running process too; see `status --pid`.")
@click.option("--children", is_flag=True, help="With --pid: ask all processes that it has started as well.")
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="Import MODULE first, in a subprocess.")
@click.option("--no-imports", is_flag=True, help="Be quick: do not import the targets of the patches.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects; what was looked at goes to stderr.")
def doctor(
    *,
    pythons: tuple[str, ...],
    pids: tuple[int, ...],
    children: bool,
    modules: tuple[str, ...],
    no_imports: bool,
    as_json: bool,
) -> None:
    """Name what would leave a process of a job unpatched. --python, --pid and --import may be given several times.

    Looks at this environment and its variables, and imports the targets of the patches that the installed releases
    need, with the patches, in a subprocess: reports patches that have drifted or failed, or lack their target. With
    --import, a framework is imported first, then nrl_patches, in another subprocess: reports references that the
    patches cannot reach then, and who else has patched their targets. Says which patches rest on releases that nobody
    has measured, and how old the evidence is.

    Exits with 1 if something would leave a process unpatched.
    """
    if children and not pids:
        raise click.UsageError("--children needs --pid")
    offspring = dict.fromkeys(child for pid in pids if children for child in descendants(pid) if child not in pids)
    other = other_environment(os.environ)
    findings = [
        *checks.check_settings(os.environ),
        *checks.check_vllm_plugins(os.environ),
        *checks.check_entry_points(),
        *checks.check_autowrapt(os.environ),
        *checks.check_copies(sys.path),
        *(
            finding
            for python in (*pythons, *filter(None, [other]))
            for finding in check_interpreter(python, os.environ)
        ),
        *(finding for pid in pids for finding in checks.check_pid(pid)),
        *(finding for pid in offspring for finding in checks.check_pid(pid, named=False)),
        *check_import(modules),
        *check_overlaps(),
    ]
    looked = None if no_imports else check_targets()
    findings += looked.findings if looked else []
    evidence = Evidence.released()
    findings += beyond_evidence(evidence)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    remarks = (str(looked or "No target was imported, as --no-imports asks for."), age(evidence))
    if not as_json and on_terminal():
        show(_table(findings, remarks))
    else:
        if not as_json:
            click.echo("\n".join(map(str, findings)) or _NOTHING)
        for remark in remarks:
            click.echo(remark, err=as_json)
    sys.exit(int(any(finding.unpatched for finding in findings)))


def _table(findings: Sequence[checks.Finding], remarks: Sequence[str]) -> Iterator[RenderableType]:
    from nrl_patches import tables  # noqa: PLC0415 - without a terminal, nobody needs rich

    lines = [
        tables.Line(f.kind, f.subject, f"found {f.found}\nnext step: {f.next_step}")
        for f in sorted(findings, key=lambda f: not f.unpatched)
    ]
    problems = sum(f.unpatched for f in findings)
    counts = [
        f"{count} {word}{'s' * (count != 1)}"
        for count, word in ((problems, "problem"), (len(findings) - problems, "note"))
        if count
    ]
    yield tables.text(", ".join(counts), "bold") if counts else tables.text(_NOTHING, "bold green")
    yield tables.Ledger(lines, ("", "about", "", "finding"))
    yield from (tables.text(remark, "dim") for remark in remarks)
