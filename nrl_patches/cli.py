"""The command ``nrl-patches``: never imported by ``import nrl_patches``."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

import nrl_patches
from nrl_patches.activation import default_activation
from nrl_patches.declaration import Patch
from nrl_patches.installed import find_installed
from nrl_patches.status import State

__all__ = ["main"]

_PROBLEMS = {State.DRIFTED, State.FAILED}


@click.group()
@click.version_option(nrl_patches.__version__, prog_name="nrl-patches")
def main() -> None:
    """Tell which workarounds this environment needs, and what becomes of them."""


@main.command("list")
def list_patches() -> None:
    """Print the id and the defect of every patch."""
    for patch in default_activation().registry:
        click.echo(f"{patch.id}\n    {patch.title}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def status(*, as_json: bool) -> None:
    """Print what becomes of every patch here: by the installed versions, before anything is imported.

    Exits with 1 if a patch has drifted or failed.
    """
    statuses = nrl_patches.status().values()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(s) for s in statuses], indent=2))
    for s in () if as_json else statuses:
        click.echo(f"{s.state:<14}{s.id}\n{'':14}{'; '.join((s.reason, *s.notes))}")
    if any(s.state in _PROBLEMS for s in statuses):
        sys.exit(1)


@main.command()
@click.argument("patch_id", metavar="ID")
def explain(patch_id: str) -> None:
    """Print what a patch repairs, why, where, and how to switch it off."""
    retired = default_activation().registry.retired
    if patch_id in retired:
        click.echo(f"{patch_id} is retired: {retired[patch_id]}")
        return
    patch = _patch(patch_id)
    rows = {
        "affected": str(patch.affected),
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
def probe(patch_id: str) -> None:
    """Look for the defect in this environment, with the patch as the environment variables have it.

    Prints what was seen as one JSON object. Exits with 1 if the defect is present.
    """
    patch = _patch(patch_id)
    seen = patch.observe()
    after = nrl_patches.status()[patch.id]
    found = {name: str(find_installed(name) or "not installed") for name in patch.affected.distributions}
    report = {
        "id": patch.id,
        "present": seen.present,
        "evidence": dict(seen.evidence),
        "installed": found,
        "status": after.state,
        "reason": after.reason,
    }
    click.echo(json.dumps(report))
    sys.exit(int(seen.present))


def _patch(patch_id: str) -> Patch:
    patches = default_activation().registry.patches
    if patch_id not in patches:
        raise click.BadParameter(f"{patch_id!r} is no patch; `nrl-patches list` shows every id", param_hint="ID")
    return patches[patch_id]
