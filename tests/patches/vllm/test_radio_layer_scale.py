"""A tower of real RADIO blocks, refitted from every kind of stream."""

from patches.vllm.environment import HERE, run
from releases import results

CONSTANT = [1.0, 1.0, 1.0, 1.0]
EXPLICIT = [0.375, 0.5, 1.375, 1.5]
HALF = [0.375, 1.0, 1.375, 1.0]


def is_right(case, outcome):
    expected = HALF if "half" in case else CONSTANT if "folded" in case else EXPLICIT
    return outcome["scales"] == [[value, value] for value in expected]


def test_layer_scale_is_right_after_every_refit_with_the_patch_and_after_almost_none_without():
    seen = results(run("0.30.0", HERE / "refit_radio.py"))
    assert set(seen["status"].values()) == {"applied"}
    right = {
        side: {case for case in seen[side] if is_right(case, seen[side][case])} for side in seen.keys() - {"status"}
    }
    assert right["off"] == {"folded, auto, 1", "folded, auto, 3", "folded, auto, 40"}
    # Alone is without the patch of the dummy load.
    assert right["alone"] == right["both"] == seen["off"].keys()
    assert len(seen["off"]) == 27
    # What else is in the stream arrives as before.
    assert all(outcome["others"] for side in right for outcome in seen[side].values())
