"""``nrl-patches probe``: whether a defect is there in this environment."""

from __future__ import annotations

import json
import os
import sys
import traceback

import click

import nrl_patches
from nrl_patches.cli.options import CannotSayError, find_patch
from nrl_patches.engine.distributions import find_installed
from nrl_patches.errors import Problem
from nrl_patches.tripwires.run import missing_for

__all__ = ["probe"]


@click.command()
@click.argument("patch_id", metavar="ID")
@click.option("--report-fd", type=int, help="Write the object to this file descriptor instead.")
def probe(patch_id: str, report_fd: int | None) -> None:
    """Look for the defect in this environment, with the patch as the environment variables have it.

    Prints what was seen as one JSON object.

    Exits with 0 if the defect is not there, 1 if it is, 2 if the command is misused, and 3 if there is no answer: a
    distribution that the patch is about is not installed, or the probe raised.
    """
    patch = find_patch(patch_id)
    found = {name: find_installed(name) for name in patch.affected.distributions}
    lacking = missing_for(patch)
    if lacking:
        said = Problem(
            patch.id,
            expected="an installed release of what it is about",
            found=f"no {', '.join(lacking)} in {sys.executable}",
            next_step="install it there, or probe where it is installed",
        )
        raise CannotSayError(str(said))
    try:
        seen = patch.observe()
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        said = Problem(
            patch.id,
            expected="an answer of its probe",
            found=f"{type(error).__name__}: {error}",
            next_step="the traceback above tells where; fix the probe or the installation",
        )
        raise CannotSayError(str(said)) from error
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
