"""``nrl-patches doctor``: what would leave a process of a job unpatched."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import click

from nrl_patches.matrix.evidence import Evidence
from nrl_patches.matrix.freshness import age, beyond_evidence
from nrl_patches.processes import doctor as checks
from nrl_patches.processes.doctor_interpreters import check_import, check_interpreter, other_environment
from nrl_patches.processes.doctor_overlaps import check_overlaps
from nrl_patches.processes.doctor_targets import check_targets
from nrl_patches.processes.inspection import descendants

__all__ = ["doctor"]


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
    else:
        click.echo("\n".join(map(str, findings)) or "Nothing found that would leave a process unpatched.")
    click.echo(str(looked or "No target was imported, as --no-imports asks for."), err=as_json)
    click.echo(age(evidence), err=as_json)
    sys.exit(int(any(finding.unpatched for finding in findings)))
