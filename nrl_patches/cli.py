"""The command ``nrl-patches``: never imported by ``import nrl_patches``."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

import nrl_patches
from nrl_patches.activation import default_activation
from nrl_patches.cli_doctor import doctor
from nrl_patches.cli_options import NO_VERDICT, SECONDS, CannotSayError, check_places, write_report
from nrl_patches.cli_run import run
from nrl_patches.declaration import Patch
from nrl_patches.errors import explain_problem
from nrl_patches.installed import find_installed
from nrl_patches.matrix.command import matrix
from nrl_patches.matrix.evidence import COMMITTED, Evidence
from nrl_patches.matrix.judgement import judge
from nrl_patches.reports import FORMATS, failing
from nrl_patches.running import descendants, is_in_trouble, look_into
from nrl_patches.status import State
from nrl_patches.tripwires import PASSING, TIMEOUT, Tripwire, Verdict, missing_for, run_tripwires

__all__ = ["main"]

_PROBLEMS = {State.DRIFTED, State.FAILED}


class _Group(click.Group):
    """Keeps the exit code 1, which is an answer, apart from an interrupt and from an error of ours."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Aborted!", err=True)
            sys.exit(128 + signal.SIGINT)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it is no answer
            traceback.print_exc()
            sys.exit(NO_VERDICT)


@click.group(cls=_Group)
@click.version_option(nrl_patches.__version__, prog_name="nrl-patches")
def main() -> None:
    """Tell which workarounds this environment needs, and what becomes of them."""


main.add_command(doctor)
main.add_command(run)


@main.command("list")
def list_patches() -> None:
    """Print the id and the defect of every patch."""
    for patch in default_activation().registry:
        click.echo(f"{patch.id}\n    {patch.title}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.option("--pid", "pids", multiple=True, type=int, help="Ask a running process; may be given several times.")
@click.option("--children", is_flag=True, help="With --pid: ask all processes that it has started as well.")
def status(*, as_json: bool, pids: tuple[int, ...], children: bool) -> None:
    """Print what becomes of every patch here: by the installed versions, before anything is imported.

    With --pid print what has become of them in running processes instead, as these knew it at the last change of a
    status, or when they last asked for it themselves.

    Exits with 1 if a patch has drifted or failed, if a process named by --pid cannot tell, or if a child of it runs
    without patches although it has loaded torch.
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
    if any(s.state in _PROBLEMS for s in statuses):
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


@main.command()
@click.argument("patch_id", metavar="ID")
def explain(patch_id: str) -> None:
    """Print what a patch repairs, why, where, and how to switch it off."""
    patch = _patch(patch_id)
    rows = {
        "affected": str(patch.affected),
        "measured": judge(patch, Evidence.read(COMMITTED)).seen,
        "here": patch.affected.decide(find_installed).reason,
        "status": str(nrl_patches.status()[patch.id].state),
        "targets": "\n            ".join(fix.target for fix in patch.fixes),
        "upstream": "\n            ".join(patch.upstream),
        "switch off": f"{patch.opt_out}=1, or NRL_PATCHES_DISABLE={patch.id}",
        "required": "yes" if patch.required else "no",
    }
    click.echo(f"{patch.id}\n\n{patch.doc}\n")
    for name, value in rows.items():
        click.echo(f"{name:<12}{value}")


@main.command()
@click.argument("patch_id", metavar="ID")
@click.option("--report-fd", type=int, help="Write the object to this file descriptor instead.")
def probe(patch_id: str, report_fd: int | None) -> None:
    """Look for the defect in this environment, with the patch as the environment variables have it.

    Prints what was seen as one JSON object.

    Exits with 0 if the defect is not there, 1 if it is, 2 if the command is misused, and 3 if there is no answer: a
    distribution that the patch is about is not installed, or the probe raised.
    """
    patch = _patch(patch_id)
    found = {name: find_installed(name) for name in patch.affected.distributions}
    lacking = missing_for(patch)
    if lacking:
        said = explain_problem(
            patch.id,
            expected="an installed release of what it is about",
            found=f"no {', '.join(lacking)} in {sys.executable}",
            next_step="install it there, or probe where it is installed",
        )
        raise CannotSayError(said)
    try:
        seen = patch.observe()
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        said = explain_problem(
            patch.id,
            expected="an answer of its probe",
            found=f"{type(error).__name__}: {error}",
            next_step="the traceback above tells where; mend the probe or the installation",
        )
        raise CannotSayError(said) from error
    after = nrl_patches.status()[patch.id]
    report = {
        "id": patch.id,
        "present": seen.present,
        "evidence": dict(seen.evidence),
        "installed": {name: str(installed or "not installed") for name, installed in found.items()},
        "status": after.state,
        "reason": after.reason,
    }
    if report_fd is None:
        click.echo(json.dumps(report))
    else:
        with os.fdopen(report_fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(report))
    sys.exit(int(seen.present))


@main.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    type=click.Choice([str(v) for v in Verdict if v not in PASSING]),
    help="Do not fail on this verdict; may be given several times.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(list(FORMATS)),
    help="May be given several times; each goes to the --output in the same place, the rest to stdout.",
)
@click.option("--output", "outputs", multiple=True, help="A file; - is stdout.")
@click.option(
    "--timeout", type=SECONDS, default=TIMEOUT, show_default=True, help="Seconds for each side of a tripwire."
)
def tripwires(
    ids: tuple[str, ...], allowed: tuple[str, ...], formats: tuple[str, ...], outputs: tuple[str, ...], timeout: float
) -> None:
    """Run the probes without and with their patches, and say which patches are needed, obsolete or broken.

    Exits with 0 only if every verdict is needed, not affected, not installed, or allowed; with 1 if one is not; with 2
    if the command is misused, as by an --output that cannot be written; with 3 if a report could not be written after
    all, which is then printed.
    """
    chosen = formats or ("text",)
    if len(outputs) > len(chosen):
        raise click.UsageError("more --output than --format")
    places = [*outputs, *["-"] * (len(chosen) - len(outputs))]
    summary = os.environ.get("GITHUB_STEP_SUMMARY", "") if "github" in chosen else ""
    check_places([(place, "--output") for place in places if place != "-"])
    check_places([(summary, "GITHUB_STEP_SUMMARY")] if summary else [])
    patches = [_patch(patch_id) for patch_id in ids] or list(default_activation().registry)
    found = _run(patches, timeout)
    verdicts = {Verdict(name) for name in allowed}
    written = True
    for place, name in zip(places, chosen, strict=True):
        written &= write_report(FORMATS[name](found, verdicts), place)
    if summary:
        written &= write_report(FORMATS["markdown"](found, verdicts), summary, append=True)
    if not written:
        sys.exit(NO_VERDICT)
    if default_activation().registry.broken:
        for broken in default_activation().registry.broken:
            click.echo(str(broken), err=True)
        sys.exit(1)
    sys.exit(int(bool(failing(found, verdicts))))


main.add_command(matrix)


def _run(patches: Sequence[Patch], timeout: float) -> list[Tripwire]:
    # On stderr, so that a report on stdout stays a report.
    if sys.stderr.isatty():
        label = click.style("tripwires", bold=True)
        with click.progressbar(length=len(patches), label=label, file=sys.stderr, show_pos=True) as bar:
            return run_tripwires(patches, timeout=timeout, done=lambda _: bar.update(1))
    return run_tripwires(
        patches, timeout=timeout, done=lambda t: click.echo(f"{t.id}: {t.verdict} ({t.seconds:.1f} s)", err=True)
    )


def _patch(patch_id: str) -> Patch:
    registry = default_activation().registry
    if patch_id in registry.retired:
        raise click.BadParameter(f"{patch_id} is retired: {registry.retired[patch_id]}", param_hint="ID")
    if patch_id not in registry.patches:
        raise click.BadParameter(f"{patch_id!r} is no patch; `nrl-patches list` shows every id", param_hint="ID")
    return registry.patches[patch_id]
