"""The table of agreement: one row for each length, kind of text, method and batch, in each state of the patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nrl_patches.diagnose.judge import FAULT, NOT_RUN, OK
from nrl_patches.diagnose.metrics import Distance, by_position, distance, spread
from nrl_patches.diagnose.plan import Plan
from nrl_patches.diagnose.settings import Row, Task

__all__ = ["Agreement", "agreement"]

_WORST = 5


@dataclass(frozen=True)
class Agreement:
    """One row of the table, in one state, with one trainer.

    Attributes:
        state: Of the patches.
        trainer: Whose model scored.
        row: What was sampled.
        verdict: ``ok``, ``fault`` or ``not-run``.
        reason: One sentence.
        error: ``token_mult_prob_error`` of tokens from the engine, the mean of all repetitions; None if not run.
        spread: The largest less the smallest of the repetitions.
        same_tokens: Whether each repetition sampled the same tokens.
        other: ``token_mult_prob_error`` of tokens from the trainer; None if that half was left out.
        both: The mean of the two halves, as the guide asks for a stricter test.
        distance: All metrics of the first repetition.
        other_distance: All metrics of the other half.
        positions: The error along the sequence, of the first repetition.
        worst: The tokens that both sides are furthest apart in.
        applied: The patches that were applied, on either side.
    """

    state: str
    trainer: str
    row: Row
    verdict: str
    reason: str
    error: float | None = None
    spread: float | None = None
    same_tokens: bool | None = None
    other: float | None = None
    both: float | None = None
    distance: Mapping[str, Any] | None = None
    other_distance: Mapping[str, Any] | None = None
    positions: Sequence[tuple[float, float | None]] = ()
    worst: Sequence[Mapping[str, Any]] = ()
    applied: Sequence[str] = ()


def agreement(plan: Plan, result: Callable[[Task], Mapping[str, Any]]) -> list[Agreement]:
    """Return the rows of one state.

    Args:
        plan: That of the state.
        result: Returns the result of a task.
    """
    return [_row(plan, row, backend, result) for row in plan.rows() for backend in plan.known.backends]


def _row(plan: Plan, row: Row, backend: str, result: Callable[[Task], Mapping[str, Any]]) -> Agreement:
    tasks = plan.sampled(row)
    sampled = [result(task) for task in tasks]
    scored = [result(plan.scored(task, backend)) for task in tasks]
    for found in (*sampled, *scored):
        if "error" in found:
            return Agreement(plan.state, backend, row, NOT_RUN, found["error"])
    measured = [distance(s["logprobs"], t["logprobs"]) for s, t in zip(sampled, scored, strict=True)]
    other, without = _other_half(plan, row, result) if backend == plan.known.backends[0] else (None, "")
    errors = [found.token_mult_prob_error for found in measured]
    error = sum(errors) / len(errors)
    verdict, reason = _verdict(measured, other, plan.settings.threshold)
    reason += f"; not sampled from the trainer: {without}" if without else ""
    return Agreement(
        plan.state,
        backend,
        row,
        verdict,
        reason,
        error=error,
        spread=spread(errors),
        same_tokens=all(found["tokens"] == sampled[0]["tokens"] for found in sampled),
        other=other.token_mult_prob_error if other else None,
        both=(error + other.token_mult_prob_error) / 2 if other else None,
        distance=asdict(measured[0]),
        other_distance=asdict(other) if other else None,
        positions=by_position(sampled[0]["logprobs"], scored[0]["logprobs"]),
        worst=scored[0]["worst"][:_WORST],
        applied=sorted({name for found in (*sampled, *scored) for name in found["applied"]}),
    )


def _other_half(plan: Plan, row: Row, result: Callable[[Task], Mapping[str, Any]]) -> tuple[Distance | None, str]:
    task, scored = plan.trainer_sampled(row), plan.engine_scored(row)
    if task is None or scored is None:
        return None, ""
    trainer, engine = result(task), result(scored)
    if "error" in trainer or "error" in engine:
        return None, str(trainer.get("error") or engine["error"])
    return distance(trainer["logprobs"], engine["logprobs"]), ""


def _verdict(measured: Sequence[Distance], other: Distance | None, threshold: float) -> tuple[str, str]:
    halves = [*measured, *([other] if other else [])]
    nan = sum(found.nan for found in halves)
    if nan:
        return FAULT, f"{nan} of {sum(found.tokens for found in halves)} log-probabilities are NaN or infinite"
    worst = max(found.token_mult_prob_error for found in halves)
    if worst > threshold:
        from_trainer = other is not None and worst == other.token_mult_prob_error
        where = "sampled from the trainer" if from_trainer else "sampled from the engine"
        return FAULT, f"token_mult_prob_error {worst:.4g}, {where}, is above {threshold:g}"
    return OK, f"token_mult_prob_error {worst:.4g} at most"
