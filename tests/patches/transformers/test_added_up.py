"""Accumulated batches are one large batch where losses were added up; whatever else divides a loss is as it was."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

SCRIPT = Path(__file__).parent / "added_up.py"

EXACT = ("bert", "bart", "bart_decoder", "classifier", "t5")

ELSEWHERE = (
    *("blip", "blip_decoder", "deberta_classifier", "deberta_v2_classifier", "distilbert", "flaubert"),
    *("pix2struct", "pix2struct_decoder", "prophetnet", "prophetnet_decoder", "prophetnet_smoothed"),
    *("qwen2_audio", "xlm"),
)
"""Models whose mean another function or module takes."""

PADDED = 1e-3
"""Of ProphetNet's gradient: what it computes for a token depends on the padding behind it, if ever so little."""

each = pytest.mark.parametrize(
    "release",
    [
        pytest.param("transformers==5.16.1", marks=pytest.mark.xdist_group("transformers==5.16.1")),
        pytest.param(
            "peft==0.21.2 & transformers==5.24.0", marks=pytest.mark.xdist_group("peft==0.21.2 & transformers==5.24.0")
        ),
    ],
)


@functools.cache
def gone(release):
    return results(run_on(release, SCRIPT, *EXACT, *ELSEWHERE, "llama", "qwen3_moe"))


def gaps(release, model):
    """How far accumulated batches are from one large batch without the patches, and with."""
    found = gone(release)
    return found["off"][f"{model}: gap"]["returns"], found["on"][f"{model}: gap"]["returns"]


@each
@pytest.mark.parametrize("model", EXACT)
def test_accumulated_batches_are_one_large_batch(release, model):
    off, on = gaps(release, model)
    assert off > 2
    assert on < 1e-5


@each
@pytest.mark.parametrize("model", ELSEWHERE)
def test_they_are_where_another_function_computes_the_loss(release, model):
    off, on = gaps(release, model)
    assert off > 2
    assert on < (PADDED if model.startswith("prophetnet") else 1e-5)


@each
def test_the_loss_of_a_router_is_near_that_of_one_large_batch(release):
    off, on = gaps(release, "qwen3_moe")
    assert off > 0.5
    assert on < 0.05


@each
def test_who_divides_by_tokens_is_let_alone(release):
    off, on = gaps(release, "llama")
    assert off == on < 1e-5


@each
def test_all_else_is_as_it_was_bit_by_bit(release):
    found = gone(release)
    same = {case for case in found["off"] if not case.endswith(": gap")}
    assert len(same) == 12
    assert {case: found["on"][case] for case in same} == {case: found["off"][case] for case in same}
