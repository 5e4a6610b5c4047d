"""``nrl-patches list`` and ``nrl-patches explain``: what patches there are, and what one is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

import nrl_patches
from nrl_patches.cli.ids import ANY_ID, every_defect
from nrl_patches.cli.options import on_terminal, show
from nrl_patches.declaration import Patch
from nrl_patches.defect import Defect
from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.decision import decide
from nrl_patches.engine.registry import load_defects

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["explain", "list_patches"]

_UNREPAIRED = "Known, and not repaired here"


@click.command("list")
def list_patches() -> None:
    """Print the id, the defect and the releases of every patch, and of what is known without one.

    On a terminal, what the installed releases have comes first.
    """
    patches = list(default_activation().registry)
    defects, broken = load_defects()
    if on_terminal():
        show(_tables(patches, list(defects.values())))
    else:
        for patch in patches:
            click.echo(f"{patch.id}\n    {patch.title}\n    {patch.affected.spelled_out()}")
        if defects:
            click.echo(f"\n{_UNREPAIRED}:\n")
        for defect in defects.values():
            click.echo(f"{defect.id}\n    {defect.title}\n    {defect.affected.spelled_out()}\n    {defect.advice}")
    for file in broken:
        click.echo(str(file), err=True)


def _tables(patches: Sequence[Defect], defects: Sequence[Defect]) -> Iterator[RenderableType]:
    from nrl_patches import tables  # noqa: PLC0415 - without a terminal, nobody needs rich

    titles = (f"{len(patches)} patches", f"{_UNREPAIRED}: {len(defects)}")
    for title, shown in zip(titles, (patches, defects), strict=True):
        lines = [
            tables.Line(
                decide(defect).answer.value,
                defect.id,
                "\n".join(filter(None, (defect.affected.spelled_out(), defect.advice))),
                title=defect.title,
            )
            for defect in shown
        ]
        yield tables.text(title, "bold")
        lines.sort(key=lambda line: tables.rank(line.word))
        yield tables.Ledger(lines, ("here", "defect", "", "releases"), fade=False)


@click.command()
@click.argument("patch_id", metavar="ID", type=ANY_ID)
def explain(patch_id: str) -> None:
    """Print what a defect is, where, whether it is repaired, and how to switch that off."""
    from nrl_patches.matrix.compare import judge  # noqa: PLC0415 - `list` needs nothing of the matrix
    from nrl_patches.matrix.evidence import Evidence  # noqa: PLC0415
    from nrl_patches.matrix.freshness import measured_releases  # noqa: PLC0415

    evidence = Evidence.released()
    window = {n: f"{n} {v[0]} to {v[-1]}" for n, v in measured_releases(evidence).items()}
    patch = every_defect()[patch_id]
    rows = {
        "affected": patch.affected.spelled_out(),
        "evidence": judge(patch, evidence).seen,
        "looked at": ", ".join(window.get(name, name) for name in patch.affected.distributions),
        "here": decide(patch).reason,
        "victims": "\n            ".join(f"{who}: {where}" for who, where in patch.victims.items()),
        "upstream": "\n            ".join(patch.upstream),
    }
    if isinstance(patch, Patch):
        rows |= {
            "status": str(nrl_patches.status()[patch.id].state),
            "targets": "\n            ".join(fix.target for fix in patch.fixes),
            "switch off": f"{patch.opt_out}=1, or NRL_PATCHES_DISABLE={patch.id}",
            "required": "yes" if patch.required else "no",
        }
    else:
        rows |= {"status": "not repaired here", "advice": patch.advice}
    if not patch.measured:
        rows["evidence"] = "not measured: the range is upstream's word"
    click.echo(f"{patch.id}\n\n{patch.doc}\n")
    for name, value in ((name, value) for name, value in rows.items() if value):
        click.echo(f"{name:<12}{value}")
