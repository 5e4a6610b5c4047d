"""A reload of some of a model's weights, by the real loader and the real model's own ``load_weights``."""

import pytest
from patches.vllm.environment import HERE, run
from releases import results

pytestmark = pytest.mark.xdist_group("layerwise_reload")

DIFFER = {
    "all": [],
    "queries, of queries, keys and values": ["model.layers.0.self_attn.qkv_proj.weight"],
    "gates, of gates and ups": [f"model.layers.{layer}.mlp.gate_up_proj.weight" for layer in (0, 1)],
    "norms": [],
}
"""What is garbage without the patch, by what is sent."""


def test_weights_that_are_not_sent_are_kept():
    seen = results(run("0.30.0", HERE / "reload_partial.py"))
    assert "vllm.layerwise_reload_unsent_tensors" in seen["applied"]
    assert seen["tensors"] > 25
    for stream, differ in DIFFER.items():
        assert seen[f"off, {stream}"] == differ, stream
        assert seen[f"on, {stream}"] == [], stream


EXPERTS = [f"mlp.experts.routed_experts.{name}" for name in ("w13_bias", "w13_weight", "w2_bias", "w2_weight")]
LOST = {
    "gpt_oss": [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("attn.sinks", *EXPERTS)],
    "colbert": ["colbert_linear.weight"],
    "colqwen3": ["custom_text_proj.weight"],
    "colqwen3_5": ["custom_text_proj.weight"],
    "colpali": ["custom_text_proj.weight"],
}
"""What stays as it was without the patch, by model."""


def test_what_models_copy_into_their_parameters_is_written():
    seen = results(run("0.30.0 with images", HERE / "reload_bare_copies.py"))
    assert seen["state"] == "applied"
    for model, lost in LOST.items():
        assert seen[f"off, {model}"] == lost, model
        assert seen[f"on, {model}"] == [], model
    assert seen["said"] == []


def test_an_incomplete_quantised_layer_is_named_once():
    seen = results(run("0.30.0", HERE / "reload_absent_parts.py"))
    layer = "model.layers.0.self_attn.qkv_proj"
    for side in ("off", "on"):
        assert seen[f"{side}, all"] == {"garbage": [], "said": []}
        part = seen[f"{side}, queries and keys"]
        assert part["garbage"] == [f"{layer}.weight_scale", f"{layer}.azp_adj"]
        assert len(part["said"]) == (side == "on")
    assert f"{layer}: expected" in part["said"][0]
    assert "found k, q of weight_scale, weight: without v" in part["said"][0]
