"""``nrl-patches probe``: whether this environment has a defect."""

from __future__ import annotations

import json
import os
import sys
import traceback

import click

import nrl_patches
from nrl_patches.cli.ids import PROBED_ID, every_defect
from nrl_patches.cli.options import CannotSayError
from nrl_patches.engine.distributions import find_installed
from nrl_patches.errors import Problem
from nrl_patches.tripwires.run import missing_for

__all__ = ["probe"]


@click.command()
@click.argument("patch_id", metavar="ID", type=PROBED_ID)
@click.option("--report-fd", type=int, help="Write the object to this file descriptor instead of stdout.")
def probe(patch_id: str, report_fd: int | None) -> None:
    """Run the probe of a patch in this environment, with the patch switched on or off by environment variables.

    Prints the observation as one JSON object.

    Exits with 0 if the defect is absent, 1 if it is present, 2 on a usage error, and 3 if there is no answer: a
    distribution that the patch is about is not installed, or the probe raised.
    """
    patch = every_defect()[patch_id]
    found = {name: find_installed(name) for name in patch.affected.distributions}
    if not patch.has_probe:
        step = f"`nrl-patches explain {patch.id}`"
        raise CannotSayError(
            str(Problem(patch.id, "a defect with a probe", "none: the range is upstream's word", step))
        )
    lacking = missing_for(patch)
    if lacking:
        problem = Problem(
            patch.id,
            expected="its distributions to be installed",
            found=f"no {', '.join(lacking)} in {sys.executable}",
            next_step="install them there, or run the probe where they are installed",
        )
        raise CannotSayError(str(problem))
    try:
        seen = patch.observe()
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        problem = Problem(
            patch.id,
            expected="its probe to return",
            found=f"{type(error).__name__}: {error}",
            next_step="see the traceback above; fix the probe or the installation",
        )
        raise CannotSayError(str(problem)) from error
    after = nrl_patches.status().get(patch.id)
    report = {
        "id": patch.id,
        "present": seen.present,
        "evidence": dict(seen.evidence),
        "installed": {name: str(installed or "not installed") for name, installed in found.items()},
        "status": after.state if after else "not repaired here",
        "reason": after.reason if after else patch.advice,
    }
    if report_fd is None:
        click.echo(json.dumps(report))
    else:
        with os.fdopen(report_fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(report))
    sys.exit(int(seen.present))
