import math

import pytest

from nrl_patches.diagnose import judge
from nrl_patches.diagnose.judge import COMPARED, FAULT, NOT_RUN, OK, Limits
from nrl_patches.diagnose.ranges import fold

LIMITS = Limits(mean=1.05, largest=1.0)


def steps(*pairs):
    return [[{"token": token, "best": {str(t): p for t, p in best.items()}} for token, best in pairs]]


def test_numbers_are_folded_into_ranges():
    assert fold([5, 1, 0, 2, 9, 8, 9]) == "0-2,5,8-9"
    assert fold([]) == ""


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [([0.0, 0.04], OK), ([0.06, 0.06], FAULT), ([0.0] * 99 + [1.1], FAULT), ([math.nan], FAULT), ([], NOT_RUN)],
)
def test_what_should_be_equal_has_a_mean_and_a_largest_gap(gaps, verdict):
    assert LIMITS.verdict([gaps], [[0.0] * len(gaps)])[0] == verdict


@pytest.mark.parametrize(("new", "verdict"), [(16, OK), (17, FAULT)])
def test_a_sequence_may_be_as_long_as_the_limit_and_no_longer(new, verdict):
    cases = [{"prompt": 84, "new": new}, {"prompt": 100, "refused": "too long"}]
    found, said, figures = judge.judge_limit({"limit": 100, "cases": cases})
    assert found == verdict
    assert figures["longest"] == 84 + new
    assert str(84 + new) in said


def test_an_engine_that_refuses_every_prompt_says_nothing_about_the_limit():
    assert judge.judge_limit({"limit": 9, "cases": [{"prompt": 8, "refused": "no"}]})[0] == NOT_RUN


def test_generations_are_compared_as_far_as_they_have_the_same_tokens_behind_them():
    one = steps((3, {3: -0.5, 4: -1.0}), (5, {5: -0.7, 6: -0.8}), (7, {7: -0.1}))
    other = steps((3, {3: -0.6, 4: -0.9}), (6, {6: -0.75, 5: -0.76}), (7, {7: -9.0}))
    assert judge.common(one, other) == ([[-0.5, -0.7, -0.8]], [[-0.6, -0.76, -0.75]], pytest.approx(1 / 3))


def prefix(cached, plain, hits=((16,), (0,))):
    return judge.judge_prefix({"hits": hits, "cached": cached, "plain": plain}, LIMITS)


def test_a_nan_after_a_cached_prefix_is_a_fault_even_where_tokens_differ():
    good = steps((3, {3: -0.5}), (4, {4: -0.5}))
    assert prefix(good, good)[0] == OK
    verdict, said, _ = prefix(steps((9, {9: -0.5}), (0, {0: math.nan})), good)
    assert (verdict, said[:6]) == (FAULT, "1 of 2")


def test_without_a_hit_nothing_is_said_of_the_cache():
    good = steps((3, {3: -0.5}))
    assert prefix(good, good, hits=((0,), (0,)))[0] == NOT_RUN
    assert prefix(good, good, hits=((16,), (16,)))[0] == NOT_RUN


def refit(tensors, before, shift=0.0):
    observed = {"prompt": [[-1.0 - shift]], "steps": steps((3, {3: -0.5})), "batches": 2, "tensors": [tensors]}
    disk = {"prompt": [[-1.0]], "steps": steps((3, {3: -0.5})), "tensors": [{"a": "1", "b": "1"}]}
    return judge.judge_refit(observed | {"before": [before]}, disk, LIMITS)


def test_a_refit_names_what_was_not_written():
    assert refit({"a": "1", "b": "1"}, {"a": "0", "b": "0"})[0] == OK
    verdict, said, figures = refit({"a": "1", "b": "0"}, {"a": "0", "b": "0"}, shift=2)
    assert (verdict, figures["unwritten"]) == (FAULT, ["b"])
    assert "not written: b" in said
    verdict, said, figures = refit({"a": "1", "b": "2"}, {"a": "0", "b": "0"})
    assert (verdict, figures["unwritten"], figures["different"]) == (OK, [], ["b"])
    assert "without effect here" in said


def test_compilation_modes_are_compared_with_the_first_that_ran_and_not_judged():
    ran = {"prompt": [[-1.0]], "steps": steps((3, {3: -0.5})), "compilation": {}}
    other = ran | {"prompt": [[-1.5]]}
    found = judge.compare_modes({"eager": {"error": "no GPU"}, "cuda-graphs": ran, "inductor": other})
    assert [(mode, verdict) for mode, verdict, _, _ in found] == [
        ("eager", NOT_RUN),
        ("cuda-graphs", COMPARED),
        ("inductor", COMPARED),
    ]
    assert found[2][3]["prompt"]["largest"] == 0.5


def test_rows_of_embeddings_are_reported_as_ranges_with_the_memory():
    tensor = {"kind": "input", "rows": 9, "width": 4, "norm": {}, "tokens": {}}
    good = tensor | {"zero": [], "identical": [], "copies": [], "nan": []}
    result = {"tied": True, "peak": {"before": 0, "after": 2**21, "block": 1}, "tensors": {"embed": good}}
    verdict, said, _ = judge.judge_embeddings(result)
    assert (verdict, "2 MB" in said) == (OK, True)
    result["tensors"]["embed"] = good | {"zero": [3, 4, 5, 8]}
    verdict, said, figures = judge.judge_embeddings(result)
    assert verdict == FAULT
    assert "4 near zero (3-5,8)" in said
    assert figures["tensors"]["embed"]["ranges"]["zero"] == "3-5,8"
