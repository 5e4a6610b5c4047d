"""``nrl-patches list`` and ``nrl-patches explain``: what patches there are, and what one is about."""

from __future__ import annotations

import click

import nrl_patches
from nrl_patches.cli.options import find_patch
from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.decision import decide

__all__ = ["explain", "list_patches"]


@click.command("list")
def list_patches() -> None:
    """Print the id, the defect and the releases of every patch."""
    for patch in default_activation().registry:
        click.echo(f"{patch.id}\n    {patch.title}\n    {patch.affected.spelled_out()}")


@click.command()
@click.argument("patch_id", metavar="ID")
def explain(patch_id: str) -> None:
    """Print what a patch repairs, why, where, and how to switch it off."""
    from nrl_patches.matrix.compare import judge  # noqa: PLC0415 - `list` needs nothing of the matrix
    from nrl_patches.matrix.evidence import COMMITTED, Evidence  # noqa: PLC0415
    from nrl_patches.matrix.freshness import measured_releases  # noqa: PLC0415

    evidence = Evidence.read(COMMITTED)
    window = {n: f"{n} {v[0]} to {v[-1]}" for n, v in measured_releases(evidence).items()}
    patch = find_patch(patch_id)
    rows = {
        "affected": patch.affected.spelled_out(),
        "measured": judge(patch, evidence).seen,
        "looked at": ", ".join(window.get(name, name) for name in patch.affected.distributions),
        "here": decide(patch).reason,
        "status": str(nrl_patches.status()[patch.id].state),
        "targets": "\n            ".join(fix.target for fix in patch.fixes),
        "upstream": "\n            ".join(patch.upstream),
        "switch off": f"{patch.opt_out}=1, or NRL_PATCHES_DISABLE={patch.id}",
        "required": "yes" if patch.required else "no",
    }
    click.echo(f"{patch.id}\n\n{patch.doc}\n")
    for name, value in rows.items():
        click.echo(f"{name:<12}{value}")
