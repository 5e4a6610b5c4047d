"""A tower of real RADIO blocks, refitted from every kind of stream."""

from patches.vllm.environment import HERE, run
from releases import results, run_on

CONSTANT = [1.0, 1.0, 1.0, 1.0]
EXPLICIT = [0.375, 0.5, 1.375, 1.5]
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


def test_layer_scale_is_right_after_every_refit_with_the_patch_and_after_almost_none_without():
    seen = results(run("0.30.0", HERE / "refit_radio.py", "off", "alone", "both"))
    assert set(seen.pop("status").values()) == {"applied"}
    assert right(seen["off"]) == {"folded, auto, 1", "folded, auto, 3", "folded, auto, 40"}
    # Alone is without the patch of the dummy load.
    assert right(seen["alone"]) == right(seen["both"]) == seen["off"].keys()
    assert len(seen["off"]) == 48
    for outcomes in seen.values():
        check_others(outcomes)


def test_it_is_where_a_reload_loses_the_tensors_of_a_layer_that_the_stream_carries_in_part():
    seen = results(run_on("vllm==0.25.1", HERE / "refit_radio.py", "both"))["both"]
    assert right(seen) == seen.keys()
    assert len(seen) == 48
    check_others(seen)
    reloads = [outcome for case, outcome in seen.items() if "reload" in case]
    assert all(outcome["kept"] and not outcome["listed"] for outcome in reloads)
