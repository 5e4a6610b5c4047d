"""``nrl-patches new`` and ``nrl-patches check``: writing a patch."""

from __future__ import annotations

import sys

import click

from nrl_patches.authoring.check import check_patch
from nrl_patches.authoring.new import plan, write
from nrl_patches.cli.ids import PATCH_ID
from nrl_patches.cli.options import SECONDS, in_color
from nrl_patches.tripwires.sides import TIMEOUT

__all__ = ["check", "new"]


@click.command()
@click.argument("name", metavar="ID")
@click.option("--target", required=True, metavar="MODULE:QUALNAME", help="What the patch replaces.")
@click.option("--upstream", required=True, metavar="URL", help="The issue or pull request.")
@click.option("--affected", default="", metavar="REQUIREMENT", help="The releases; the installed one by default.")
@click.option("--package", default="", metavar="PACKAGE", help="Your own package of patch files.")
@click.option("--rewrite", is_flag=True, help="Change lines in the middle of the target, not the whole.")
def new(*, name: str, target: str, upstream: str, affected: str, package: str, rewrite: bool) -> None:
    """Write the file of a new patch, with a probe that fails until it is written, and say what remains.

    ID is the package that has the target, a dot, and what the patch is about: transformers.subject_defect. In a
    checkout of this project the lines in CHANGELOG.md, docs/patches.md and docs/environment.md are written as well;
    elsewhere --package is needed.

    Exits with 2 if something of it cannot be right; nothing is written then.
    """
    try:
        made = plan(name, target, upstream, affected, package, rewrite=rewrite)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from problem
    steps = write(made)
    click.echo(f"{made.patch_id}: {made.file}\n\nWhat remains:")
    for number, step in enumerate(steps, 1):
        click.echo(f"  {number}. {step}")


@click.command()
@click.argument("patch_id", metavar="ID", type=PATCH_ID)
@click.option("--timeout", type=SECONDS, default=TIMEOUT, show_default=True, help="Seconds for each process.")
def check(*, patch_id: str, timeout: float) -> None:
    """Check a patch on the installed release: its file, its probe, its fix, apply and undo; explain what is wrong.

    Exits with 0 if nothing is, 1 if something is.
    """
    good = True
    click.echo(f"checking {patch_id} in processes of its own; each step may take a minute", err=True)
    for step in check_patch(patch_id, timeout):
        good &= not step.problem
        word, color = ("FAILED", "red") if step.problem else ("ok", "green")
        click.echo(f"{click.style(f'{word:<8}', fg=color)}{step.name}", color=in_color())
        if step.problem:
            click.echo(f"        found: {step.problem}")
        if step.problem and step.hint:
            click.echo(f"        do:    {step.hint}")
    if good:
        click.echo(f"nothing is wrong here; `nrl-patches matrix --patch {patch_id}` measures the other releases")
    sys.exit(int(not good))
