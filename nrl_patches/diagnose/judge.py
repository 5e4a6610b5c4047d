"""What the results of the two sides mean: a verdict for each diagnostic, with its reason and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nrl_patches.diagnose.metrics import distance
from nrl_patches.diagnose.ranges import fold

__all__ = ["COMPARED", "FAULT", "NOT_RUN", "OK", "Finding", "Limits", "compare_modes"]

OK, FAULT, NOT_RUN, COMPARED = "ok", "fault", "not-run", "compared"

Result = Mapping[str, Any]
_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """What one diagnostic found in one state.

    Attributes:
        diagnostic: Its name.
        state: Of the patches.
        case: Which engine, mode or variant; empty if there is one only.
        verdict: ``ok``, ``fault``, ``not-run``, or ``compared`` where none is meant.
        reason: One sentence.
        figures: What was measured.
        applied: The patches that were applied.
    """

    diagnostic: str
    state: str
    case: str
    verdict: str
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    applied: Sequence[str] = ()


@dataclass(frozen=True)
class Limits:
    """How far log-probabilities that should be equal may be apart.

    Attributes:
        mean: The ``token_mult_prob_error``.
        largest: The largest gap.
    """

    mean: float
    largest: float

    def verdict(
        self, one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
    ) -> tuple[str, str, dict[str, Any]]:
        """Return the verdict on two sets of log-probabilities of the same tokens, with a sentence and figures.

        Args:
            one: Those of one side.
            other: Those of the other.
        """
        found = distance(one, other)
        figures = {
            "token_mult_prob_error": found.token_mult_prob_error,
            "largest": found.largest,
            "tokens": found.tokens,
            "nan": found.nan,
        }
        if not found.tokens:
            return NOT_RUN, "there are no tokens to compare", figures
        if found.nan:
            return FAULT, f"{found.nan} of {found.tokens} log-probabilities are NaN or infinite", figures
        good = found.token_mult_prob_error <= self.mean and found.largest <= self.largest
        said = f"error {found.token_mult_prob_error:.4g}, largest gap {found.largest:.3g}, {found.tokens} tokens"
        limits = f" (at most {self.mean:g} and {self.largest:g})"
        return (OK, said, figures) if good else (FAULT, said + limits, figures)


def judge_limit(result: Result) -> tuple[str, str, dict[str, Any]]:
    """Judge `max-model-len`.

    Args:
        result: That of the engine.

    Returns:
        Verdict, sentence and figures.
    """
    limit = result["limit"]
    lengths = [case["prompt"] + case.get("new", 0) for case in result["cases"]]
    generated = [length for case, length in zip(result["cases"], lengths, strict=True) if "new" in case]
    figures = {"limit": limit, "longest": max(generated, default=0), "cases": result["cases"]}
    beyond = [length for length in generated if length > limit]
    if beyond:
        return FAULT, f"a sequence of {max(beyond)} tokens, where max_model_len is {limit}", figures
    if not generated:
        return NOT_RUN, f"every prompt was refused: {result['cases'][0]['refused']}", figures
    return OK, f"no sequence is longer than {limit} tokens, the longest has {max(generated)}", figures


def judge_decode(result: Result, limits: Limits) -> tuple[str, str, dict[str, Any]]:
    """Judge `decode-vs-prefill`.

    Args:
        result: That of the engine.
        limits: How far both may be apart.

    Returns:
        Verdict, sentence and figures.
    """
    return limits.verdict(result["logprobs"], result["prefill"])


def judge_prefix(result: Result, limits: Limits) -> tuple[str, str, dict[str, Any]]:
    """Judge `prefix-cache`.

    Args:
        result: That of the engine.
        limits: How far log-probabilities with and without a cache may be apart.

    Returns:
        Verdict, sentence and figures.
    """
    cached_hits, plain_hits = result["hits"]
    one, other, same = common(result["cached"], result["plain"])
    verdict, said, figures = limits.verdict(one, other)
    own = [[step["best"][str(step["token"])] for step in steps] for steps in result["cached"]]
    bad = sum(not math.isfinite(value) for row in own for value in row)
    figures |= {"cached tokens": cached_hits, "same tokens": same, "nan": bad}
    if bad:
        total = sum(map(len, own))
        return FAULT, f"{bad} of {total} log-probabilities after a cached prefix are NaN or infinite", figures
    if not min(cached_hits):
        return NOT_RUN, "no prefix was found in the cache: a longer --length gives it whole blocks", figures
    if max(plain_hits):
        return NOT_RUN, "the cache could not be emptied", figures
    return verdict, f"{said}, {min(cached_hits)} tokens and more from the cache", figures


def judge_refit(result: Result, disk: Result, limits: Limits) -> tuple[str, str, dict[str, Any]]:
    """Judge `refit`.

    Args:
        result: That of the engine that was refitted.
        disk: That of the engine that was loaded from disk.
        limits: How far both may be apart.

    Returns:
        Verdict, sentence and figures.
    """
    different, unwritten = [], []
    for now, before, right in zip(result["tensors"], result["before"], disk["tensors"], strict=True):
        wrong = [name for name in right if now.get(name) != right[name]]
        different += wrong
        unwritten += [name for name in wrong if now.get(name) == before.get(name)]
    continued, expected, same = common(result["steps"], disk["steps"])
    verdict, said, figures = limits.verdict([*result["prompt"], *continued], [*disk["prompt"], *expected])
    figures |= {
        "batches": result["batches"],
        "tensors": sum(map(len, disk["tensors"])),
        "different": different,
        "unwritten": unwritten,
        "same tokens": same,
    }
    if different:
        kind = f"not written: {_few(unwritten)}" if unwritten else f"different from those on disk: {_few(different)}"
        said += f"; {kind}" + (", without effect here" if verdict == OK else "")
    return verdict, f"{said}; {result['batches']} batches", figures


def judge_packed(result: Result, limits: Limits) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Judge `packed-vs-padded`.

    Args:
        result: That of the trainer.
        limits: How far a sequence in a batch may be from the same alone.

    Returns:
        For each way of batching its name, verdict, sentence and figures.
    """
    found = [("padded, against each alone", *limits.verdict(result["alone"], result["padded"]))]
    for name in ("no mask", "a mask of ones"):
        figures = limits.verdict(result["padded"], result[name])
        found.append((f"packed with {name}, against padded", *figures))
    return found


def judge_embeddings(result: Result) -> tuple[str, str, dict[str, Any]]:
    """Judge `embeddings`.

    Args:
        result: That of the trainer.

    Returns:
        Verdict, sentence and figures; the numbers of rows as ranges.
    """
    peak = result["peak"]
    grown = (peak["after"] - peak["before"]) / 2**20
    figures: dict[str, Any] = {"tied": result["tied"], "peak": peak, "tensors": {}}
    problems = []
    for name, found in result["tensors"].items():
        kinds = {kind: found[kind] for kind in ("zero", "identical", "copies", "nan")}
        folded = {kind: fold(rows) for kind, rows in kinds.items()}
        sizes = {kind: len(rows) for kind, rows in kinds.items()}
        other = {key: found[key] for key in ("kind", "rows", "width", "norm", "tokens")}
        figures["tensors"][name] = other | {"count": sizes, "ranges": folded}
        words = {"zero": "near zero", "identical": "all alike", "copies": "copies of another", "nan": "NaN"}
        said = [f"{sizes[kind]} {words[kind]} ({_short(folded[kind])})" for kind in words if sizes[kind]]
        problems += [f"{name}: {', '.join(said)}"] if said else []
    memory = f"read with {grown:.0f} MB more memory at the peak"
    tied = "tied" if result["tied"] else "not tied"
    if problems:
        return FAULT, f"{'; '.join(problems)}; {tied}; {memory}", figures
    rows = ", ".join(f"{name} {found['rows']}" for name, found in result["tensors"].items())
    return OK, f"every row is trained ({rows}; {tied}); {memory}", figures


def compare_modes(results: Mapping[str, Result]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Compare the compilation modes with the first; there is no verdict.

    Args:
        results: Those of the engines, by mode.

    Returns:
        For each mode its name, ``compared`` or ``not-run``, a sentence and figures.
    """
    reference = next((mode for mode, found in results.items() if "error" not in found), "")
    told: list[tuple[str, str, str, dict[str, Any]]] = []
    for mode, found in results.items():
        if "error" in found:
            told.append((mode, NOT_RUN, found["error"], {}))
            continue
        base = results[reference]
        one, other, same = common(found["steps"], base["steps"])
        prompt, steps = distance(base["prompt"], found["prompt"]), distance(other, one)
        figures = {
            "compilation": found["compilation"],
            "prompt": vars(prompt),
            "generation": vars(steps),
            "same tokens": same,
        }
        said = f"largest gap to {reference} {prompt.largest:.3g} in prompts, {steps.largest:.3g} in generation"
        said += f", {same:.0%} of the tokens the same" if mode != reference else "; the reference"
        told.append((mode, COMPARED, said, figures))
    return told


def common(
    one: Sequence[Sequence[Mapping[str, Any]]], other: Sequence[Sequence[Mapping[str, Any]]]
) -> tuple[list[list[float]], list[list[float]], float]:
    """Return the log-probabilities that two greedy generations have in common.

    Up to the step, inclusive, in which they choose different tokens, both have the same tokens behind them; whatever is
    among the best of both there can be compared.

    Args:
        one: The steps of one, for each sequence.
        other: Those of the other.

    Returns:
        Log-probabilities of the same tokens, and the share of steps with the same token.
    """
    left: list[list[float]] = []
    right: list[list[float]] = []
    same = total = 0
    for mine, theirs in zip(one, other, strict=True):
        left.append([])
        right.append([])
        apart = False
        for step, step_there in zip(mine, theirs, strict=True):
            total += 1
            if apart:
                continue
            apart = step["token"] != step_there["token"]
            same += not apart
            shared = [str(step["token"])] if not apart else sorted(set(step["best"]) & set(step_there["best"]))
            left[-1] += [step["best"][token] for token in shared]
            right[-1] += [step_there["best"][token] for token in shared]
    return left, right, same / max(total, 1)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _short(ranges: str) -> str:
    parts = ranges.split(",")
    return ",".join(parts[:_NAMED]) + (",…" if len(parts) > _NAMED else "")
