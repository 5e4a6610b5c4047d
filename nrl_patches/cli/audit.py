"""``nrl-patches audit``: which known defects hit a set of pins."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from packaging.requirements import InvalidRequirement, Requirement

from nrl_patches.audit.answers import Hit, answer, environment_of
from nrl_patches.audit.bump import bump, pairs_of
from nrl_patches.audit.pins import Pins, installed_pins, read_pins
from nrl_patches.audit.reports import FORMATS, Audit, as_tables, as_text, attention
from nrl_patches.audit.scan import scan
from nrl_patches.cli.ids import ANY_ID, every_defect
from nrl_patches.cli.options import NO_VERDICT, CannotSayError, check_places, columns, drawn, on_terminal, write_report
from nrl_patches.declaration import Patch
from nrl_patches.defect import Defect
from nrl_patches.matrix.evidence import Evidence
from nrl_patches.matrix.freshness import age
from nrl_patches.matrix.plan import Task

__all__ = ["audit"]

_FOLDER = ".nrl-patches-matrix"
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def _requirements(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> list[Requirement]:
    found = []
    for value in values:
        try:
            requirement = Requirement(value)
        except InvalidRequirement as error:
            raise click.BadParameter(str(error)) from error
        if [part.operator for part in requirement.specifier] not in (["=="], ["==="]):
            raise click.BadParameter(f"{value!r} must be pinned, as in transformers==5.24.0")
        found.append(requirement)
    return found


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=_FILE)
@click.option("--with", "changes", multiple=True, callback=_requirements, metavar="NAME==VERSION", help="On top.")
@click.option("--from", "old", type=_FILE, metavar="OLD", help="With --to: what a bump changes.")
@click.option("--to", "new", type=_FILE, metavar="NEW", help="With --from; see there.")
@click.option("--measure", is_flag=True, help="Measure here what nobody has measured; see `nrl-patches matrix`.")
@click.option("--scan", "tree", type=click.Path(path_type=Path, exists=True), help="Look for workarounds in a tree.")
@click.option("--ignore", "ignored", multiple=True, metavar="ID", type=ANY_ID, help="Leave out; several are allowed.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(list(FORMATS)), help="May be given several times."
)
@click.option("--output", "outputs", multiple=True, help="A file for the --format in the same place; - is stdout.")
@click.option("--all", "everything", is_flag=True, help="Show every row on a terminal.")
@click.option("--folder", default=_FOLDER, show_default=True, type=click.Path(path_type=Path), help="Of --measure.")
def audit(  # noqa: PLR0913 - one parameter per option
    *,
    files: tuple[Path, ...],
    changes: list[Requirement],
    old: Path | None,
    new: Path | None,
    measure: bool,
    tree: Path | None,
    ignored: tuple[str, ...],
    as_json: bool,
    formats: tuple[str, ...],
    outputs: tuple[str, ...],
    everything: bool,
    folder: Path,
) -> None:
    """Say which known defects hit a set of pins, which of them are repaired, and what nobody has measured.

    FILE is a uv.lock, a pylock.toml, a requirements file or the output of `pip freeze`; without one, this environment
    is looked at. Nothing of it is installed or imported. A lock that holds several versions of a distribution is
    answered for each combination of extras and groups.

    Exits with 0 if every defect that hits and has a patch is repaired, 1 if one is not or nobody knows, 2 if the
    command is misused, and 3 if a file could not be read. Defects that are known and have no patch are shown, and do
    not count.
    """
    if (old is None) != (new is None):
        raise click.UsageError("--from and --to need each other")
    chosen = (*formats, *(["json"] if as_json else [])) or ("text",)
    if len(outputs) > len(chosen):
        raise click.UsageError("more --output than --format")
    places = [*outputs, *["-"] * (len(chosen) - len(outputs))]
    check_places([(place, "--output") for place in places if place != "-"])
    patches = [patch for patch in every_defect().values() if patch.id not in ignored]
    try:
        found = _audit(patches, files, changes, (old, new), tree, folder if measure else None)
    except ValueError as problem:
        raise CannotSayError(str(problem)) from problem
    written = True
    for place, name in zip(places, chosen, strict=True):
        written &= write_report(_report(found, name, place, everything=everything), place)
    sys.exit(int(attention(found)) if written else NO_VERDICT)


def _report(found: Audit, name: str, place: str, *, everything: bool) -> str:
    if name != "text" or place != "-":
        return FORMATS[name](found)
    return drawn(as_tables(found, everything=everything)) if on_terminal() else as_text(found, columns())


def _audit(
    patches: Sequence[Defect],
    files: Sequence[Path],
    changes: Sequence[Requirement],
    ends: tuple[Path | None, Path | None],
    tree: Path | None,
    folder: Path | None,
) -> Audit:
    names = list(dict.fromkeys(name for patch in patches for name in patch.affected.distributions))
    evidence = Evidence.released()
    old, new = ([pins.changed(changes) for pins in read_pins(end, names)] if end else [] for end in ends)
    pairs = pairs_of(old, new) if old else []
    looked = [pins for file in files for pins in _labelled(read_pins(file, names), file, several=len(files) > 1)]
    if not files and not pairs and tree is None:
        looked = installed_pins(names)
    looked = [pins.changed(changes) for pins in looked]
    if folder is not None:
        evidence = _measured(patches, [*looked, *old, *new], folder)
    workarounds, problems = scan(tree, [p for p in patches if isinstance(p, Patch)]) if tree else ([], [])
    return Audit(
        evidence=age(evidence),
        environments=[(pins, answer(patches, pins, evidence)) for pins in looked],
        bumps=[(before, after, bump(patches, before, after, evidence)) for before, after in pairs],
        workarounds=workarounds,
        problems=problems,
    )


def _labelled(environments: Sequence[Pins], file: Path, *, several: bool) -> list[Pins]:
    if not several:
        return list(environments)
    return [Pins(f"{file} {pins.label}".strip(), pins.releases, pins.remarks) for pins in environments]


def _measured(patches: Sequence[Defect], looked: Sequence[Pins], folder: Path) -> Evidence:
    """Measure what nobody has measured, and return what is known then."""
    from nrl_patches.matrix.runner import jobs_here  # noqa: PLC0415 - what measuring needs, an audit does not
    from nrl_patches.matrix.session import NotOursError, Workshop  # noqa: PLC0415

    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    workshop = Workshop(folder, [patch for patch in patches if patch.has_probe], timeout=300.0)
    try:
        with workshop.open():
            tasks = _unmeasured(list(workshop.patches.values()), looked, workshop.evidence)
            if tasks:
                click.echo(f"{len(tasks)} environments to measure in {folder}", err=True)
                workshop.run(tasks, jobs_here(), lambda task, *_: click.echo(f"measured {task.environment}", err=True))
            return workshop.evidence
    except (NotOursError, OSError) as problem:
        raise CannotSayError(str(problem)) from problem


def _unmeasured(patches: Sequence[Defect], looked: Sequence[Pins], evidence: Evidence) -> list[Task]:
    by_id = {patch.id: patch for patch in patches}
    todo: dict[str, list[str]] = {}
    for pins in looked:
        for row in answer(patches, pins, evidence):
            environment = environment_of(by_id[row.id], pins)
            if row.hit is Hit.UNMEASURED and environment is not None:
                todo.setdefault(environment, []).append(row.id)
    return [Task(environment, tuple(dict.fromkeys(ids))) for environment, ids in todo.items()]
