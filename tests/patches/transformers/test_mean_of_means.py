"""Accumulated batches are one large batch for models that take no number of tokens; all else is as it was."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

SCRIPT = Path(__file__).parent / "mean_of_means.py"

OFF = {
    "transformers==4.49.0": ("bart", "bart_decoder", "masked_bert", "qwen2_vl", "t5"),
    "transformers==4.57.6": ("masked_bert", "qwen3_vl", "qwen3_vl_moe", "t5"),
    "peft==0.21.2 & transformers==5.8.1": ("dense_qwen3_5", "glm4v", "glm4v_moe", "qwen3_5_moe", "qwen3_vl"),
    "peft==0.21.2 & transformers==5.24.0": ("glm4v_moe", "qwen3_5_moe", "qwen3_vl_moe", "qwen3_vl_moe_with_router"),
}
"""Models whose means are averaged without the patch."""

NEAR = 1e-4
"""Of the gradient, with the loss of a router, which no weights of rows make that of one large batch."""

models = pytest.mark.parametrize(
    ("release", "model"),
    [
        pytest.param(release, model, marks=pytest.mark.xdist_group(release))
        for release, models in OFF.items()
        for model in models
    ],
)
each = pytest.mark.parametrize(
    "release", [pytest.param(release, marks=pytest.mark.xdist_group(release)) for release in OFF]
)


@functools.cache
def gone(release):
    return results(run_on(release, SCRIPT, *OFF[release], "llama"))


@models
def test_accumulated_batches_are_one_large_batch(release, model):
    off, on = (gone(release)[side][f"{model}: gap"]["returns"] for side in ("off", "on"))
    assert off > 0.2
    assert on < (NEAR if model.endswith("with_router") else 5e-6)


@each
def test_who_divides_by_tokens_is_let_alone(release):
    off, on = (gone(release)[side]["llama: gap"]["returns"] for side in ("off", "on"))
    assert off == on < 1e-5


@each
def test_all_else_is_as_it_was_bit_by_bit(release):
    found = gone(release)
    same = {case for case in found["off"] if not case.endswith(": gap")}
    assert len(same) == (10 if release.startswith("transformers==4") else 8)
    assert all("returns" in found["off"][case] for case in same)
    assert {case: found["on"][case] for case in same} == {case: found["off"][case] for case in same}
