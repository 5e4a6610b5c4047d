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
