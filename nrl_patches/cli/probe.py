"""``nrl-patches probe``: whether this environment has a defect."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import click

import nrl_patches
from nrl_patches.cli.ids import PROBED_ID, every_defect
from nrl_patches.cli.options import CannotSayError, in_color
from nrl_patches.engine.distributions import find_installed
from nrl_patches.engine.status import State
from nrl_patches.errors import Problem
from nrl_patches.tripwires.run import missing_for

__all__ = ["probe"]

_ABSENT, _UNREPAIRED = "not installed", "not repaired here"


@click.command()
@click.argument("patch_id", metavar="ID", type=PROBED_ID)
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@click.option("--report-fd", type=int, help="Write the object to this file descriptor, and nothing to stdout.")
def probe(*, patch_id: str, as_json: bool, report_fd: int | None) -> None:
    """Run the probe of a patch in this environment, with the patch switched on or off by environment variables.

    Says whether the defect is there, what the probe measured, and what the patch has to do with it.

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
        "installed": {name: str(installed or _ABSENT) for name, installed in found.items()},
        "status": after.state if after else _UNREPAIRED,
        "reason": after.reason if after else patch.advice,
    }
    if report_fd is not None:
        with os.fdopen(report_fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(report))
    elif as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(_sentence(report), color=in_color())
    sys.exit(int(seen.present))


def _sentence(report: Mapping[str, Any]) -> str:
    """What an object says, in words: whether the defect is there, where, by what values, and what of the patch."""
    present, status, reason = report["present"], report["status"], report["reason"].rstrip(".")
    answer = click.style("there" if present else "not there", fg="red" if present else "green", bold=True)
    releases = ", ".join(installed for installed in report["installed"].values() if installed != _ABSENT)
    values = ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in report["evidence"].items())
    if status == _UNREPAIRED:
        repair = f"No patch repairs it. {reason}"
    elif status == State.NOT_AFFECTED:
        repair = f"No patch is due: {reason}"
    else:
        repair = f"The patch is {status}: {reason}"
    return f"{report['id']}: the defect is {answer} in {releases}{f' ({values})' * bool(values)}. {repair}."
