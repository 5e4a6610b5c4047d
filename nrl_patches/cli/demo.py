"""``nrl-patches demo``: the defects of the installed releases, without the package and with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

import click

import nrl_patches
from nrl_patches.cli.ids import PATCH_ID
from nrl_patches.cli.options import SECONDS, CannotSayError, columns, show
from nrl_patches.declaration import Patch
from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.affected import Answer
from nrl_patches.engine.decision import decide
from nrl_patches.engine.distributions import find_installed
from nrl_patches.errors import Problem
from nrl_patches.tripwires.run import missing_for
from nrl_patches.tripwires.sides import Side, run_side

__all__ = ["demo"]

_TIMEOUT = 300.0
"""Seconds: a first run in a fresh environment compiles all of torch and transformers."""

_MOST = 3
_BETWEEN = 6
"""What lies between the three columns of the table."""


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...", type=PATCH_ID)
@click.option("--install", "requirements", multiple=True, metavar="REQUIREMENT", help="Into a throw-away environment.")
@click.option(
    "--timeout",
    type=SECONDS,
    default=_TIMEOUT,
    show_default=True,
    help="Seconds per process; two per defect.",
)
def demo(*, ids: tuple[str, ...], requirements: tuple[str, ...], timeout: float) -> None:
    """Run the defects of the installed releases without this package and with it, and show both in a table.

    Shows three of the patches that are needed here, or those that are named. With --install, for example --install
    torch --install transformers==5.5.0, a temporary environment is made for that, and deleted afterwards.

    Exits with 0 if every defect is there without the package and gone with it, 1 if not, and 3 if no patch is needed
    here.
    """
    if requirements:
        sys.exit(_elsewhere(ids, requirements, timeout))
    registry = default_activation().registry
    needed = [patch for patch in registry if not missing_for(patch) and decide(patch).answer is Answer.YES]
    chosen = [patch for patch in needed if patch.id in ids] if ids else _varied(needed)
    if not chosen:
        step = "nrl-patches demo --install torch --install numpy --install transformers==5.5.0"
        what = "those" if ids else "any patch"
        raise CannotSayError(str(Problem("nrl-patches demo", f"releases that need {what}", "none here", f"`{step}`")))
    rows = []
    for patch in chosen:
        click.echo(f"{patch.id} …", err=True)
        off = run_side(patch.id, patched=False, timeout=timeout)
        rows.append((patch, off, run_side(patch.id, patched=True, timeout=timeout)))
    click.echo(err=True)
    _show(rows)
    sys.exit(int(not all(off.present and on.present is False for _, off, on in rows)))


def _varied(patches: Sequence[Patch]) -> list[Patch]:
    """The first few, one of each subject before a second one: what the ids of a family begin with is one subject."""
    first: dict[str, Patch] = {}
    for patch in patches:
        first.setdefault(patch.id.rpartition(".")[2].partition("_")[0], patch)
    return [*first.values(), *(patch for patch in patches if patch not in first.values())][:_MOST]


def _show(rows: Sequence[tuple[Patch, Side, Side]]) -> None:
    from rich import box  # noqa: PLC0415 - what cannot be shown needs none
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from nrl_patches.tables import text  # noqa: PLC0415

    headings = ("without nrl-patches", "with it")
    cells = [[_cell(off, good=False), _cell(on, good=True)] for _, off, on in rows]
    said = [max(len(words) for row in cells for words in (heading, *row[at])) for at, heading in enumerate(headings)]
    widths = [min(width, columns() // 3) for width in said]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_lines=True, border_style="dim")
    table.add_column("defect", overflow="fold", width=max(8, columns() - sum(widths) - _BETWEEN))
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, overflow="fold", width=width)
    for (patch, off, on), row in zip(rows, cells, strict=True):
        releases = ", ".join(str(find_installed(name)) for name in patch.affected.distributions)
        styles = (_style(off), _style(on))
        told = (
            Group(text(word, style), *map(text, values)) for (word, *values), style in zip(row, styles, strict=True)
        )
        table.add_row(Group(text(patch.title), text(f"{patch.id}, {releases}", "dim")), *told)
    show([text("What is wrong here, and what the patches make of it", "bold"), "", table])


def _cell(side: Side, *, good: bool) -> list[str]:
    """What is shown of one side: a word, and the values that the probe measured."""
    if side.present is None:
        return ["no answer", side.error.partition("\n")[0][:80]]
    word = "right" if not side.present else "still wrong" if good else "wrong"
    return [word, *(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in side.evidence.items())]


def _style(side: Side) -> str:
    return "bold magenta" if side.present is None else "bold red" if side.present else "bold green"


def _elsewhere(ids: Sequence[str], requirements: Sequence[str], timeout: float) -> int:
    """Make an environment, show the demo there, and delete it."""
    with tempfile.TemporaryDirectory(prefix="nrl-patches-demo-") as folder:
        click.echo(f"installing {', '.join(requirements)} …", err=True)
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        root = Path(nrl_patches.__file__).parents[1]
        # A checkout is installed from its files; otherwise the same version comes from the index.
        own = str(root) if (root / "pyproject.toml").is_file() else f"nrl-patches=={nrl_patches.__version__}"
        install = [python, "-m", "pip", "install", "--quiet", own, *requirements]
        done = subprocess.run(install, check=False)  # noqa: S603 - what the user asked for
        if done.returncode:
            return done.returncode
        command = [python, "-P", "-m", "nrl_patches", "demo", *ids, "--timeout", str(timeout)]
        environ = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        return subprocess.run(command, check=False, env=environ, cwd=folder).returncode  # noqa: S603 - as above
