import math

import pytest

from nrl_patches.diagnose.metrics import by_position, distance, spread


def test_the_same_log_probabilities_are_perfect():
    found = distance([[-1.0, -2.0]], [[-1.0, -2.0]])
    assert (found.token_mult_prob_error, found.k1, found.k2, found.k3, found.largest) == (1, 0, 0, 0, 0)
    assert (found.tokens, found.nan) == (2, 0)


def test_the_error_is_the_mean_of_the_exponentials_of_the_absolute_gaps():
    # exp(|-1 - -1.1|) and exp(|-2 - -1.8|), as the guide's formula has it, and not the exponential of the mean.
    found = distance([[-1.0], [-2.0]], [[-1.1], [-1.8]])
    assert found.token_mult_prob_error == pytest.approx((math.exp(0.1) + math.exp(0.2)) / 2)


def test_the_estimates_are_those_of_the_divergence_of_the_sampler_from_the_other():
    sampler, other = [0.7, 0.3], [0.5, 0.5]
    exact = sum(p * math.log(p / q) for p, q in zip(sampler, other, strict=True))
    # Ten tokens as the sampler draws them: seven of one, three of the other.
    draws = [0] * 7 + [1] * 3
    found = distance([[math.log(sampler[x]) for x in draws]], [[math.log(other[x]) for x in draws]])
    assert found.k1 == pytest.approx(exact)
    assert found.k3 == pytest.approx(exact)  # The mean of r is 1 over these draws.
    assert found.k2 == pytest.approx(sum(math.log(other[x] / sampler[x]) ** 2 / 2 for x in draws) / 10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_nan_makes_everything_nan(bad, side):
    both = [[[-1.0, -1.0]], [[-1.0, -1.0]]]
    both[side] = [[-1.0, bad]]
    found = distance(*both)
    assert found.nan == 1
    assert all(map(math.isnan, (found.token_mult_prob_error, found.k1, found.k2, found.k3, found.largest)))
    assert by_position(*both) == [(0.5, 1.0), (1.5, None)]


def test_a_gap_beyond_any_float_is_large_and_no_error():
    assert distance([[0.0]], [[-5000.0]]).token_mult_prob_error > 1e300


def test_sides_with_different_tokens_are_refused():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        distance([[-1.0, -1.0]], [[-1.0]])


def test_positions_are_folded_into_bins():
    found = by_position([[-1.0] * 10], [[-1.0] * 5 + [-2.0] * 5], bins=2)
    assert found == [(2.5, 1.0), (7.5, pytest.approx(math.e))]
    assert by_position([], []) == []


def test_the_spread_of_a_nan_is_none():
    assert spread([1.0, 1.5, 1.25]) == 0.5
    assert math.isnan(spread([1.0, math.nan]))
