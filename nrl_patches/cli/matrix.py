"""``nrl-patches matrix``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from nrl_patches.cli.ids import MEASURABLE_ID, every_known
from nrl_patches.cli.options import SECONDS, CannotSayError, check_folder
from nrl_patches.defect import Defect
from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.registry import load_defects
from nrl_patches.errors import Problem
from nrl_patches.matrix.compare import judge
from nrl_patches.matrix.disk import disk_usage
from nrl_patches.matrix.evidence import Measurement, write_whole
from nrl_patches.matrix.index import IndexProblem
from nrl_patches.matrix.plan import Selection, Task, axis
from nrl_patches.matrix.report.page import page
from nrl_patches.matrix.report.panels import panels
from nrl_patches.matrix.report.picture import draw, to_png, to_svg
from nrl_patches.matrix.report.ranges import axes, to_ranges_svg
from nrl_patches.matrix.runner import jobs_here
from nrl_patches.matrix.session import Again, NotOursError, Workshop
from nrl_patches.matrix.update import checkout, write_evidence, write_ranges, write_tables

__all__ = ["matrix"]

TIMEOUT = 300.0
"""Seconds for each side of a tripwire: several run at a time, and a release's first import compiles it."""

if TYPE_CHECKING:
    _SpecifierType = click.ParamType[SpecifierSet]  # Generic for type checkers, and at run time from click 8.4 on.
else:
    _SpecifierType = click.ParamType

_TO_REPORT = ("jinja2", "matplotlib")
_TO_MEASURE = ("psutil", "pypi_simple", "torch", "uv")
_FOLDER = ".nrl-patches-matrix"


class _Releases(_SpecifierType):
    name = "specifier"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> SpecifierSet:
        try:
            return SpecifierSet(str(value))
        except InvalidSpecifier as error:
            self.fail(f"{value!r} is no version specifier: {error}", param, ctx)


@click.command()
@click.argument("distributions", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--releases", type=_Releases(), help="Only these, such as '>=5.3,<5.8'; needs one DISTRIBUTION.")
@click.option("--patch", "ids", multiple=True, metavar="ID", type=MEASURABLE_ID, help="Only this; several are allowed.")
@click.option("--pre", is_flag=True, help="Measure pre-releases too.")
@click.option("--again", type=click.Choice(["errors", "all"]), help="Repeat measurements without an answer, or all.")
@click.option("--jobs", type=click.IntRange(min=1), help="Releases at a time; by default what the memory allows.")
@click.option(
    "--timeout", type=SECONDS, default=TIMEOUT, show_default=True, help="Seconds for each side of a tripwire."
)
@click.option("--folder", default=_FOLDER, show_default=True, type=click.Path(path_type=Path), help="Works here.")
@click.option("--output", type=click.Path(path_type=Path), help="Writes the report here; FOLDER/report by default.")
@click.option("--offline", is_flag=True, help="Measure nothing; only report what is known.")
@click.option("--update", is_flag=True, help="Write the ranges and the evidence into this checkout of the project.")
@click.option("--clean", is_flag=True, help="Delete what earlier runs left in FOLDER, and do nothing else.")
def matrix(  # noqa: PLR0913 - one parameter per option
    *,
    distributions: tuple[str, ...],
    releases: SpecifierSet | None,
    ids: tuple[str, ...],
    pre: bool,
    again: Again | None,
    jobs: int | None,
    timeout: float,
    folder: Path,
    output: Path | None,
    offline: bool,
    update: bool,
    clean: bool,
) -> None:
    """Measure every patch on every upstream release, and compare that with what the patches declare.

    Installs each release in its own folder, on top of this interpreter's torch, runs the tripwires there, and
    writes matrix.json, ranges.svg, matrix.svg, matrix.png and matrix.html. Starts from the evidence that this package
    was released with; can be interrupted at any time.

    With --update, a range that is not what was measured is replaced in its patch file, and the evidence in the package.
    What a new range names is measured as declared by the next run: run it again until it exits with 0.

    Exits with 0 if every declaration is exactly what was measured, 1 if one is not, 2 if the command is misused, and 3
    if nothing could be said.
    """
    needed = () if clean else _TO_REPORT if offline else (*_TO_REPORT, *_TO_MEASURE)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        step = "pip install 'nrl-patches[matrix]' torch"
        said = Problem(
            "nrl-patches matrix", expected=", ".join(needed), found=f"no {', '.join(missing)}", next_step=step
        )
        raise CannotSayError(str(said))
    patches = _select(distributions, ids)
    if releases is not None and len({axis(patch) for patch in patches}) != 1:
        raise click.UsageError("--releases needs exactly one DISTRIBUTION, or patches of one")
    workshop = Workshop(folder, patches, timeout, others=every_known())
    try:
        if clean:
            click.echo(f"{_bytes(workshop.clean())} given back")
            return
        os.environ.setdefault("MPLCONFIGDIR", str(workshop.folder / "matplotlib"))  # Otherwise it is the user's.
        with workshop.open():
            check_folder(output or workshop.report)
            if not offline:
                tasks = workshop.plan(Selection(releases, prereleases=pre), again)
                _measure(workshop, tasks, jobs or jobs_here())
            agrees = _report(workshop, output or workshop.report)
            if update:
                agrees &= _update(workshop, output or workshop.report)
    except IndexProblem as problem:
        step = "try again, or add --offline for a report on what is known"
        said = Problem("the package index", expected="its releases", found=str(problem), next_step=step)
        raise CannotSayError(str(said)) from problem
    except (NotOursError, OSError, ValueError) as problem:
        raise CannotSayError(str(problem)) from problem
    held = f"{folder} holds {_bytes(disk_usage(folder))} of its own"
    click.echo(f"{held}; `{workshop.cleaning}` gives it back", err=True)
    for broken in default_activation().registry.broken:
        click.echo(str(broken), err=True)
    sys.exit(int(not agrees or bool(default_activation().registry.broken)))


def _select(distributions: Sequence[str], ids: Sequence[str]) -> list[Defect]:
    every = {defect.id: defect for defect in every_known()}
    known = sorted({axis(patch) for patch in every.values()})
    for name in distributions:
        if name not in known:
            raise click.BadParameter(f"no patch is about {name!r}, only about {', '.join(known)}")
    chosen = [p for p in every.values() if (not ids or p.id in ids) and (not distributions or axis(p) in distributions)]
    if ids and not chosen:
        said = Problem(
            f"the selection of {', '.join(ids)}",
            expected=f"a patch about {', '.join(distributions)}",
            found=f"only about {', '.join(sorted({axis(every[i]) for i in ids}))}",
            next_step="leave out the DISTRIBUTION or the --patch",
        )
        raise click.UsageError(str(said))
    return chosen


def _measure(workshop: Workshop, tasks: Sequence[Task], jobs: int) -> None:
    click.echo(f"{len(tasks)} environments to measure, {jobs} at a time", err=True)
    number = 0

    def tell(task: Task, measurement: Measurement, left: float) -> None:
        nonlocal number
        number += 1
        verdicts = [f"{i.partition('.')[2]} {measurement.cells[i].verdict}" for i in task.patches if measurement.cells]
        shown = measurement.problem or ", ".join(verdicts)
        click.echo(f"{number}/{len(tasks)}, {_minutes(left)} left: {task.environment}: {shown}", err=True)

    workshop.run(tasks, jobs, tell)


def _report(workshop: Workshop, folder: Path) -> bool:
    evidence, patches = workshop.evidence, workshop.patches.values()
    judgements = [judge(patch, evidence, workshop.codes[patch.id]) for patch in patches]
    lines = [line for judgement in judgements for line in judgement.lines()]
    shown = panels(patches, evidence)
    days = sorted(cell.date for m in evidence.measurements.values() for cell in m.cells.values())
    click.echo("\n".join(lines))  # First: if the report cannot be written after all, these are known.
    caption = f"Measured {' to '.join(dict.fromkeys([days[0], days[-1]]))}" if days else "Nothing was measured"
    figure = draw(shown, caption=caption)
    svg = to_svg(figure)
    write_whole(folder / "matrix.json", evidence.text())
    write_whole(folder / "matrix.svg", svg)
    fixed = (p for p in every_known() if p.fixes)  # Not those selected only: --update puts it in its place.
    write_whole(folder / "ranges.svg", to_ranges_svg(axes(fixed, evidence), caption=caption))
    write_whole(folder / "matrix.png", to_png(figure))
    facts = {
        "environments": str(len(evidence.measurements)),
        **{
            name: ", ".join(sorted({v[name] for m in evidence.measurements.values() for v in m.all_versions()}))
            for name in ("python", "torch", "nrl-patches")
        },
    }
    write_whole(folder / "matrix.html", page(shown, caption=caption, svg=svg, declarations=lines, facts=facts))
    click.echo(f"the report is in {folder}", err=True)
    return not any(judgement.objections for judgement in judgements)


def _update(workshop: Workshop, report: Path) -> bool:
    """Write what was measured into the checkout; return whether that changed no range."""
    root = checkout()
    judgements = [judge(p, workshop.evidence, workshop.codes[p.id]) for p in workshop.patches.values()]
    changed = write_ranges(judgements)
    for patch_id in changed:
        click.echo(f"{patch_id}: now {workshop.patches[patch_id].affected}; run this again", err=True)
    write_evidence(report, root)
    write_tables([*workshop.patches.values(), *load_defects()[0].values()], workshop.evidence, root)
    return not changed


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"  # noqa: PLR2004 - where GB reads better


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"  # noqa: PLR2004 - as above
