"""What saves vLLM's users of a wrong stream or dummy load without a patch must still do so."""

import functools

import pytest
from patches.vllm.environment import HERE
from releases import results, run_on

OLDER, NEWER = "vllm==0.9.0.1", "vllm==0.33.0"
APPLIED = {
    OLDER: {"vllm.dummy_load_constants_before_load_weights"},
    NEWER: {"vllm.dummy_load_constants", "vllm.radio_layer_scale"},
}

SCALES = {f"model.encoder.layers.{block}.ls{branch}" for block in (0, 1) for branch in (1, 2)}
WEIGHTS = {f"model.encoder.layers.{block}.weight" for block in (0, 1)}

ERRORS = {
    "with a weight of another shape": "AssertionError: Attempted to load weight",
    "with what is no tensor": "AttributeError: 'NoneType' object",
    "with what is no pair": "ValueError: too many values to unpack",
}
IGNORED = ("with a weight more", "with a scale of a block more", "with a scale of something else")

pytestmark = pytest.mark.xdist_group("still_loud vllm")


@functools.cache
def told(environment):
    return results(run_on(environment, HERE / "still_loud.py"))


def streams(label):
    """Return what is told of the streams of a kind, unpatched and patched, with explicit scales and with none."""
    found = told(NEWER)
    for scales in ("scales", "none"):
        for carry in ("list", "iter"):
            name = f"{label}, {scales}, {carry}"
            yield found["off"][name], found["on"][name], SCALES if scales == "scales" else set()


@pytest.mark.parametrize("environment", [OLDER, NEWER])
def test_a_dummy_load_tells_what_it_told_and_fills_what_is_not_written_yet(environment):
    found = told(environment)
    assert {name for name, state in found["status"].items() if state == "applied"} >= APPLIED[environment]
    off, on = (
        {case: found[side][f"dummy load, {case}"] for case in ("on meta", "extra config")} for side in ("off", "on")
    )
    assert off["extra config"] == on["extra config"]
    assert off["extra config"]["raises"].startswith("ValueError: Model loader extra config is not supported")
    if environment == OLDER:  # 0.33.0 fills nothing on meta, and says nothing.
        assert off["on meta"] == on["on meta"]
        assert off["on meta"]["raises"].startswith("RuntimeError")
    # NaN, by which one would see that nobody has written it, is overwritten as before; the constant is the defect.
    assert found["off"]["dummy load, uninitialised"]["returns"] == ["other"]
    assert found["on"]["dummy load, uninitialised"]["returns"] == ["constant", "other"]


@pytest.mark.parametrize(("label", "error"), ERRORS.items())
def test_a_stream_that_is_refused_is_refused_with_the_same_words(label, error):
    for off, on, _ in streams(label):
        assert on == off
        assert on["raises"].startswith(error)


def test_a_scale_of_another_shape_is_refused_where_it_was_dropped():
    for off, on, _ in streams("with a scale of another shape"):
        assert set(off["returns"]) == WEIGHTS
        assert on["raises"].startswith("AssertionError: Attempted to load weight (torch.Size([3])) into parameter")


@pytest.mark.parametrize("label", ["right", *IGNORED])
def test_what_is_loaded_is_named_and_nothing_else(label):
    for off, on, scales in streams(label):
        assert set(off["returns"]) == WEIGHTS
        assert set(on["returns"]) == WEIGHTS | scales
        assert on["says"] == off["says"]


def test_a_weight_that_did_not_come_is_not_among_what_is_loaded():
    # By this the loader that reads a checkpoint sees that it lacks something.
    for off, on, scales in streams("without a weight"):
        assert set(off["returns"]) == WEIGHTS - {"model.encoder.layers.0.weight"}
        assert set(on["returns"]) - scales == set(off["returns"])
    for off, on, _ in streams("of another model"):
        assert on == off
        assert off["returns"] == []
