"""A tower of real RADIO blocks, refitted from every kind of stream, and written by whatever else writes it."""

from patches.vllm.environment import HERE, run
from releases import results, run_on

CONSTANT = [1.0, 1.0, 1.0, 1.0]
EXPLICIT = [0.375, 0.5, 1.375, 1.5]
TOWERS = ("new", "older", "reloaded", "cast")
UNHEARD = [("folded", "untouched"), *(("gamma", way) for way in ("kernel_format", "sharded_state", "load_state_dict"))]
"""What reaches neither the dummy load nor `load_weights`."""
EXPECTED = {"folded": CONSTANT, "first": [0.375, 1.0, 1.375, 1.0], "second": [1.0, 0.5, 1.0, 1.5]}


def right(outcomes):
    return {
        case
        for case, outcome in outcomes.items()
        if outcome["scales"] == [[value, value] for value in EXPECTED.get(case.partition(",")[0], EXPLICIT)]
    }


def check_others(outcomes):
    # What else is in the stream arrives as before.
    assert all(outcome["others"] for outcome in outcomes.values())


# Such a tower lends its scales from its next dummy load or `load_weights` on, an older one from its `load_weights` on.
NOT_LENT = {
    *(f"{kind}, {write}, {tower}, asleep" for kind, write in UNHEARD for tower in ("cast", "older")),
    *(f"folded, dummy_load, older, {then}" for then in ("awake", "asleep")),
}


def check_outside_writes(seen):
    assert len(seen) == 48
    assert seen.keys() - right(seen) == NOT_LENT
    assert all(outcome["kept"] for outcome in seen.values())


def test_layer_scale_is_right_after_every_refit_with_the_patch_and_after_almost_none_without():
    seen = results(run("0.30.0", HERE / "refit_radio.py", "off", "alone", "both"))
    assert set(seen.pop("status").values()) == {"applied"}
    listed, outside = seen.pop("listed"), seen.pop("outside")
    assert right(seen["off"]) == {"folded, auto, 1", "folded, auto, 3", "folded, auto, 40"}
    # Alone is without the patch of the dummy load.
    assert right(seen["alone"]) == right(seen["both"]) == seen["off"].keys()
    assert len(seen["off"]) == 48
    for outcomes in seen.values():
        check_others(outcomes)

    assert listed["off"] == listed["alone"] == listed["both"]
    awake = {f"{kind}, {write}, {tower}, awake" for kind, write in UNHEARD for tower in TOWERS}
    assert right(outside["off"]) == awake
    check_outside_writes(outside["alone"])
    check_outside_writes(outside["both"])


def test_it_is_where_a_reload_loses_the_tensors_of_a_layer_that_the_stream_carries_in_part():
    seen = results(run_on("vllm==0.25.1", HERE / "refit_radio.py", "off", "both"))
    listed, outside = seen.pop("listed"), seen.pop("outside")
    assert right(seen["both"]) == seen["both"].keys()
    assert len(seen["both"]) == 48
    check_others(seen["both"])
    assert all(outcome["kept"] for case, outcome in seen["both"].items() if "reload" in case)
    assert listed["off"] == listed["both"]
    check_outside_writes(outside["both"])
