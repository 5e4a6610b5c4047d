"""How far two sets of log-probabilities of the same tokens are apart; the standard library only.

Sources: ``token_mult_prob_error`` is that of NeMo RL, ``docs/adding-new-models.md`` and
``nemo_rl/algorithms/loss/loss_functions.py``; the estimators k1, k2 and k3 are those of John Schulman, "Approximating
KL Divergence" (2020), https://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Distance", "by_position", "distance", "largest_gap", "spread"]

Logprobs = Sequence[Sequence[float]]

_LARGEST = 700.0
"""The exponential of a larger number is no float."""


@dataclass(frozen=True)
class Distance:
    """How far the log-probabilities of sampled tokens are apart.

    Attributes:
        token_mult_prob_error: The mean of exp(abs(log p - log q)); 1.0 is perfect. NaN where a token has none.
        k1: An estimate of KL(sampler ‖ other), unbiased, of either sign.
        k2: One that is biased and has little variance.
        k3: One that is unbiased and never negative.
        largest: The largest abs(log p - log q).
        tokens: How many tokens there are.
        nan: How many of them have no finite log-probability on one side or both.
    """

    token_mult_prob_error: float
    k1: float
    k2: float
    k3: float
    largest: float
    tokens: int
    nan: int


def distance(sampler: Logprobs, other: Logprobs) -> Distance:
    """Compare log-probabilities of the same tokens.

    Args:
        sampler: Those of the side that the tokens were sampled from, one list for each sequence.
        other: Those of the other side.

    Returns:
        The metrics; all of them are NaN if a single log-probability is not finite.

    Raises:
        ValueError: The sides have different numbers of tokens.
    """
    pairs = [pair for mine, theirs in zip(sampler, other, strict=True) for pair in zip(mine, theirs, strict=True)]
    nan = sum(not (math.isfinite(mine) and math.isfinite(theirs)) for mine, theirs in pairs)
    if nan or not pairs:
        return Distance(math.nan, math.nan, math.nan, math.nan, math.nan, tokens=len(pairs), nan=nan)
    ratios = [theirs - mine for mine, theirs in pairs]
    return Distance(
        token_mult_prob_error=statistics.fmean(_exp(abs(ratio)) for ratio in ratios),
        k1=statistics.fmean(-ratio for ratio in ratios),
        k2=statistics.fmean(ratio * ratio / 2 for ratio in ratios),
        k3=statistics.fmean(_exp(ratio) - 1 - ratio for ratio in ratios),
        largest=max(map(abs, ratios)),
        tokens=len(pairs),
        nan=0,
    )


def by_position(one: Logprobs, other: Logprobs, bins: int = 100) -> list[tuple[float, float | None]]:
    """Return the error along the sequences.

    Args:
        one: The log-probabilities of one side.
        other: Those of the other.
        bins: Into how many parts the sequences are cut at most.

    Returns:
        For each part its middle, as a number of sampled tokens, and the mean of exp(abs(log p - log q)) there; None
        where a token has no finite log-probability.
    """
    length = max(map(len, one), default=0)
    bins = min(bins, length)
    found = []
    for part in range(bins):
        start, end = part * length // bins, (part + 1) * length // bins
        gaps = [
            abs(a - b)
            for mine, theirs in zip(one, other, strict=True)
            for a, b in zip(mine[start:end], theirs[start:end], strict=True)
        ]
        finite = bool(gaps) and all(map(math.isfinite, gaps))
        found.append(((start + end) / 2, statistics.fmean(map(_exp, gaps)) if finite else None))
    return found


def largest_gap(one: Logprobs, other: Logprobs) -> float:
    """Return the largest abs(log p - log q), NaN if any is not finite.

    Args:
        one: The log-probabilities of one side.
        other: Those of the other.

    Raises:
        ValueError: The sides have different numbers of tokens.
    """
    return distance(one, other).largest


def spread(values: Sequence[float]) -> float:
    """Return how far repeated measurements are apart, NaN if one of them is.

    Args:
        values: The measurements.
    """
    return math.nan if any(map(math.isnan, values)) or not values else max(values) - min(values)


def _exp(value: float) -> float:
    return math.exp(min(value, _LARGEST))
