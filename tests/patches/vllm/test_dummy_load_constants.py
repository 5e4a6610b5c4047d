"""Dummy load and refit on the real vLLM, against a load from disk."""

import pytest
from patches.vllm.environment import HERE, run
from releases import results

NOISE = pytest.approx(-0.00094204, abs=1e-8)
"""What vLLM's generator, whose seed is fixed, puts first into every tensor."""

NORMALIZER = {"model.normalizer": [NOISE, 8.0]}
INPUT_NORM = {
    "visual.input_norm.weight": [NOISE, pytest.approx(0.0145984, abs=1e-6)],
    "visual.input_norm.bias": [NOISE, pytest.approx(-1.7922626, abs=1e-6)],
}

LOADED = {
    "0.9.0.1": {"gemma3": NORMALIZER},  # by the patch for releases before load_weights
    "0.9.1": {"gemma": NORMALIZER, "gemma2": NORMALIZER, "gemma3": NORMALIZER},
    "0.30.0 with images": {"gemma3": {}, "qwen2_vl": INPUT_NORM, "qwen2_5_vl": INPUT_NORM},
}
"""What differs without the patch, found and right; Gemma is repaired in 0.30.0."""


@pytest.mark.parametrize("environment", LOADED)
def test_a_refit_after_a_dummy_load_ends_bitwise_as_a_load_from_disk(environment):
    seen = results(run(environment, HERE / "load_and_refit.py", *LOADED[environment]))
    for family, wrong in LOADED[environment].items():
        outcome = seen[family]
        assert outcome["tensors"] > 25
        assert outcome["off, 1"] == outcome["off, 3"] == wrong
        assert outcome["on, 1"] == outcome["on, 3"] == {}
        # The dummy load stays one: everything else was noise before the refit.
        assert outcome["off filled"] > 10
        assert outcome["on filled"] == outcome["off filled"] - len(wrong)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_the_engine_generates_after_a_refit_what_it_generates_after_a_load_from_disk(family):
    seen = results(run("0.30.0 with images", HERE / "generate.py", family))
    expected, on, off = seen["auto"], seen["on"], seen["off"]
    assert "vllm.dummy_load_constants" in seen["applied"]
    assert on["tokens"] == expected["tokens"]
    for found, right in zip(on["logprobs"], expected["logprobs"], strict=True):
        assert found == pytest.approx(right, abs=1e-5)
    assert off["tokens"] != expected["tokens"]
    constants = {"gemma3": ["model.normalizer"], "qwen2_5_vl": ["visual.input_norm.weight", "visual.input_norm.bias"]}
    for side in (on, off):
        unwritten = [line.partition(":")[0] for line in side["unwritten"]]
        # Attention's scales are constants here too.
        assert [name for name in unwritten if not name.endswith("_scale")] == constants[family]
    assert len(expected["unwritten"]) > 25  # No batch was sent after the load from disk.
