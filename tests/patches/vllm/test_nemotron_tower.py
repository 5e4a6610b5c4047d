"""Images through the real class of Nemotron VL with a real RADIO tower, refitted after a dummy load."""

from patches.vllm.environment import HERE, run
from releases import results


def test_embeddings_of_images_are_the_checkpoint_s_with_the_patches_and_others_without():
    seen = results(run("0.30.0", HERE / "nemotron_tower.py", "off", "on"))
    assert set(seen.pop("status").values()) == {"applied"}
    assert seen.keys() == {f"{side}, {start}" for side in ("off", "on") for start in ("auto", "dummy")}
    # What is left is the rounding of bfloat16.
    assert seen["on, auto"] == seen["on, dummy"] < 0.02
    assert min(seen["off, auto"], seen["off, dummy"]) > 0.5
