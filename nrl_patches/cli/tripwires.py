"""``nrl-patches tripwires``: which patches are needed, obsolete or broken."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from nrl_patches.cli.ids import PROBED_IDS, every_known, matching
from nrl_patches.cli.options import NO_VERDICT, SECONDS, check_places, drawn, on_terminal, write_report
from nrl_patches.defect import Defect
from nrl_patches.engine.activation import default_activation
from nrl_patches.tripwires.reports import FORMATS, as_tables, failing
from nrl_patches.tripwires.run import PASSING, Tripwire, Verdict, run_tripwires
from nrl_patches.tripwires.sides import TIMEOUT

__all__ = ["tripwires"]


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...", type=PROBED_IDS)
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
@click.option("--all", "everything", is_flag=True, help="Show every row on a terminal; elsewhere all are printed.")
@click.option(
    "--timeout", type=SECONDS, default=TIMEOUT, show_default=True, help="Seconds for each side of a tripwire."
)
def tripwires(
    *,
    ids: tuple[str, ...],
    allowed: tuple[str, ...],
    formats: tuple[str, ...],
    outputs: tuple[str, ...],
    everything: bool,
    timeout: float,
) -> None:
    """Run the probes without and with their patches, and say which patches are needed, obsolete or broken.

    An ID may be a pattern, such as 'vllm.*'.

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
    patches = matching(ids) or every_known()
    found = _run(patches, timeout)
    verdicts = {Verdict(name) for name in allowed}
    written = True
    for place, name in zip(places, chosen, strict=True):
        tables = name == "text" and place == "-" and on_terminal()
        text = drawn(as_tables(found, verdicts, everything=everything)) if tables else FORMATS[name](found, verdicts)
        written &= write_report(text, place)
    if summary:
        written &= write_report(FORMATS["markdown"](found, verdicts), summary, append=True)
    if not written:
        sys.exit(NO_VERDICT)
    if default_activation().registry.broken:
        for broken in default_activation().registry.broken:
            click.echo(str(broken), err=True)
        sys.exit(1)
    sys.exit(int(bool(failing(found, verdicts))))


def _run(patches: Sequence[Defect], timeout: float) -> list[Tripwire]:
    # On stderr, so that a report on stdout stays a report.
    if sys.stderr.isatty():
        label = click.style("tripwires", bold=True)
        with click.progressbar(length=len(patches), label=label, file=sys.stderr, show_pos=True) as bar:
            found = run_tripwires(patches, timeout=timeout, done=lambda _: bar.update(1))
        click.echo(err=True)
        return found
    return run_tripwires(
        patches, timeout=timeout, done=lambda t: click.echo(f"{t.id}: {t.verdict} ({t.seconds:.1f} s)", err=True)
    )
