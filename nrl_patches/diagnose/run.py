"""All diagnostics on one model: what is asked of which side, in which order, and what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nrl_patches.diagnose import judge
from nrl_patches.diagnose.agreement import Agreement, agreement
from nrl_patches.diagnose.judge import FAULT, NOT_RUN, Finding, Limits
from nrl_patches.diagnose.plan import Plan
from nrl_patches.diagnose.processes import Bench
from nrl_patches.diagnose.settings import ON, Group, Known, Settings, Task, fingerprint_of

__all__ = ["Outcome", "diagnose"]

_OF_THE_ENGINE = frozenset(
    {"agreement", "max-model-len", "decode-vs-prefill", "compilation-modes", "prefix-cache", "refit"}
)


@dataclass(frozen=True)
class Outcome:
    """What a run has found.

    Attributes:
        settings: What was asked for.
        rows: The table of agreement.
        findings: The verdicts of the other diagnostics, and of what of the table was not run.
        sides: What the interpreters have, by side.
        interrupted: Whether Ctrl-C ended it early.
    """

    settings: Settings
    rows: Sequence[Agreement] = ()
    findings: Sequence[Finding] = ()
    sides: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    def verdicts(self) -> list[str]:
        """Return the verdicts of everything."""
        return [*(row.verdict for row in self.rows), *(found.verdict for found in self.findings)]


def diagnose(bench: Bench, expect: Callable[[Sequence[Task]], None]) -> Outcome:
    """Run what is not done yet, and judge everything; after Ctrl-C, what is done so far.

    Args:
        bench: The processes and files.
        expect: Called with tasks that are still to come, before they are run.

    Returns:
        The outcome.
    """
    settings = bench.settings
    bench.prepare()
    sides = {"trainer": bench.versions("trainer")}
    sides |= {_name("engine", label): bench.versions("engine", label) for label in settings.engine_paths}
    missing = _missing(settings, sides)
    asked = replace(settings, only=settings.only - missing.keys())
    last = settings.states[-1]
    findings = [Finding(name, last, "", NOT_RUN, reason) for name, reason in sorted(missing.items())]
    if not asked.only:
        return Outcome(settings, (), findings, sides)
    bench.fingerprint = fingerprint_of(Path(settings.model), list(sides.values()))
    known = _prepare(bench, asked, sides)
    if isinstance(known, str):
        findings += [Finding(name, last, "", NOT_RUN, known) for name in sorted(asked.only)]
        return Outcome(settings, (), findings, sides)
    bench.fingerprint = fingerprint_of(Path(bench.model), list(sides.values()))
    plans = [Plan(asked, known, state, bench.fingerprint) for state in settings.states]
    interrupted = False
    try:
        _carry_out(bench, plans, expect)
        if settings.each:
            alone = [Plan(asked, known, name, bench.fingerprint) for name in _applied(bench, plans)]
            plans += alone
            _carry_out(bench, alone, expect)
    except KeyboardInterrupt:
        interrupted = True
    rows = [row for plan in plans for row in agreement(plan, bench.result)]
    findings += [found for plan in plans for found in _judge(bench, plan)]
    findings += _left_out(asked, known)
    return Outcome(settings, rows, findings, sides, interrupted)


def _name(side: str, label: str) -> str:
    return f"{side} {label}".strip()


def _missing(settings: Settings, sides: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what cannot be run, with the reason."""
    told: dict[str, str] = {}
    trainer = sides["trainer"]
    if not trainer.get("has transformers"):
        reason = trainer.get("error") or "transformers is not installed for --trainer-python"
        return dict.fromkeys(settings.only, reason)
    for name, side in sides.items():
        if name != "trainer" and not side.get("has vllm"):
            reason = side.get("error") or f"vLLM is not installed for --engine-python ({name})"
            told |= dict.fromkeys(settings.only & _OF_THE_ENGINE, reason)
    return told


def _prepare(bench: Bench, settings: Settings, sides: Mapping[str, Mapping[str, Any]]) -> Known | str:
    group = Group.of("trainer", settings.states[-1], {"dtype": "auto"}, label="transformers")
    text = str(Path(settings.text).absolute()) if settings.text else ""
    given = {"text": text, "model": settings.model, "trust_remote_code": settings.trust_remote_code}
    task = Task.of(group, "prepare", given)
    # The trainer's own checkpoint may have another tokenizer, and the engine's prompts are what counts.
    reader = replace(bench, settings=replace(settings, trainer_model=""), done=lambda _: None)
    reader.run([task])
    found = reader.result(task)
    if "error" in found:
        return f"the model cannot be read: {found['error']}"
    bench.model = str(Path(found["model"]).absolute())
    (bench.folder / "work" / "streams.json").write_text(json.dumps({"streams": found["streams"]}), encoding="utf-8")
    backends = ("transformers", "nemo-automodel") if sides["trainer"].get("has nemo_automodel") else ("transformers",)
    return Known(tuple(found["streams"]), found["positions"], backends, found["problem"], not found["problem"])


def _carry_out(bench: Bench, plans: Sequence[Plan], expect: Callable[[Sequence[Task]], None]) -> None:
    stages = [list(plan.stages()) for plan in plans]
    expect([task for stage in stages for tasks in stage for task in tasks])
    for plan, stage in zip(plans, stages, strict=True):
        for tasks in stage:
            bench.run(_needed(bench, plan, tasks))
        shutil.rmtree(bench.folder / "work" / f"weights-{plan.state}", ignore_errors=True)


def _needed(bench: Bench, plan: Plan, tasks: Sequence[Task]) -> list[Task]:
    """Have the weights saved again where an interrupted run has left none, and not for a refit that is done."""
    for task in tasks:
        if task.kind == "save" and not (bench.folder / "work" / f"weights-{plan.state}").exists():
            refits = [plan.refitted(label) for label in plan.settings.engine_paths]
            if any("error" in bench.result(refit) for refit in refits):
                bench.forget(task)
    return list(tasks)


def _applied(bench: Bench, plans: Sequence[Plan]) -> list[str]:
    on = [task for plan in plans if plan.state == ON for stage in plan.stages() for task in stage]
    return sorted({name for task in on for name in bench.result(task).get("applied", ())})


def _judge(bench: Bench, plan: Plan) -> Iterator[Finding]:
    settings, result = plan.settings, bench.result
    limits = Limits(settings.mean, settings.largest)
    for label in settings.engine_paths:
        if plan.wants("max-model-len"):
            yield _finding(plan, "max-model-len", label, [result(plan.limit(label))], judge.judge_limit)
        if plan.wants("decode-vs-prefill"):
            yield _finding(
                plan, "decode-vs-prefill", label, [result(plan.decode(label))], lambda r: judge.judge_decode(r, limits)
            )
        if plan.wants("prefix-cache"):
            yield _finding(
                plan, "prefix-cache", label, [result(plan.prefix(label))], lambda r: judge.judge_prefix(r, limits)
            )
        if plan.wants("refit"):
            saved = result(plan.saved())
            # Without the trainer's weights the engine could only say that there are none.
            needed = [saved] if "error" in saved else [result(plan.refitted(label)), result(plan.from_disk(label))]
            yield _finding(plan, "refit", label, needed, lambda r, d: judge.judge_refit(r, d, limits))
    if plan.wants("packed-vs-padded"):
        yield from _packed(plan, result(plan.packed()), limits)
    if plan.once and plan.wants("embeddings"):
        yield _finding(plan, "embeddings", "", [result(plan.embeddings())], judge.judge_embeddings)
    if plan.once and plan.wants("compilation-modes"):
        for told in judge.compare_modes({mode: result(task) for mode, task in plan.modes().items()}):
            yield Finding("compilation-modes", plan.state, *told)


def _finding(
    plan: Plan,
    name: str,
    case: str,
    results: Sequence[Mapping[str, Any]],
    judged: Callable[..., tuple[str, str, dict[str, Any]]],
) -> Finding:
    error = next((found["error"] for found in results if "error" in found), None)
    if error is not None:
        return Finding(name, plan.state, case, NOT_RUN, error)
    applied = sorted({patch for found in results for patch in found["applied"]})
    return Finding(name, plan.state, case, *judged(*results), applied=applied)


def _packed(plan: Plan, found: Mapping[str, Any], limits: Limits) -> Iterator[Finding]:
    if "error" in found:
        yield Finding("packed-vs-padded", plan.state, "", NOT_RUN, found["error"])
        return
    for told in judge.judge_packed(found, limits):
        yield Finding("packed-vs-padded", plan.state, *told, applied=found["applied"])


def _left_out(settings: Settings, known: Known) -> Iterator[Finding]:
    """Say which rows of the table were not run."""
    if "agreement" not in settings.only:
        return
    for length in settings.lengths:
        if known.positions is not None and length >= known.positions:
            reason = f"the model has {known.positions} positions"
            yield Finding("agreement", settings.states[-1], f"length {length}", NOT_RUN, reason)
    for kind in settings.data:
        if kind not in known.streams:
            yield Finding("agreement", settings.states[-1], f"{kind} text", NOT_RUN, known.problem or "no tokens")


def exit_code(outcome: Outcome) -> int:
    """Return the exit code of the command: of the state with the patches, if there is one.

    Args:
        outcome: What was found.

    Returns:
        1 if there is a fault, 3 if something was not run, 0 otherwise; 130 after Ctrl-C.
    """
    if outcome.interrupted:
        return 130
    last = outcome.settings.states[-1]
    verdicts = [row.verdict for row in outcome.rows if row.state == last]
    verdicts += [found.verdict for found in outcome.findings if found.state == last]
    return 1 if FAULT in verdicts else 3 if NOT_RUN in verdicts or not verdicts else 0
