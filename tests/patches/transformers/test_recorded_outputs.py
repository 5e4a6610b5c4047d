"""What is recorded inside of layers has its gradients; whatever else is checkpointed is as it was."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

SCRIPT = Path(__file__).parent / "recorded_outputs.py"

NEWEST = "peft==0.21.2 & transformers==5.24.0"

each = pytest.mark.parametrize(
    "release",
    [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("transformers==4.57.1", NEWEST)],
)


@functools.cache
def gone(release):
    return results(run_on(release, SCRIPT))


@each
def test_gradients_are_those_without_checkpointing(release):
    found = gone(release)
    gaps = [case for case in found["off"] if case.endswith(": gap")]
    assert len(gaps) == 5 + (release == NEWEST)
    assert min(found["off"][case]["returns"] for case in gaps) > 0.01
    assert max(found["on"][case]["returns"] for case in gaps) < 1e-5


@each
def test_without_a_record_or_reentrant_checkpointing_all_is_as_it_was_bit_by_bit(release):
    found = gone(release)
    same = [case for case in found["off"] if case.startswith(("nothing recorded", "recorded"))]
    assert len(same) == 5
    assert {case: found["on"][case] for case in same} == {case: found["off"][case] for case in same}


@each
@pytest.mark.parametrize("case", ["left of a step", "left of a forward"])
def test_nothing_outlives_a_step(release, case):
    assert gone(release)["on"][case]["returns"] == 0


@each
@pytest.mark.parametrize("case", ["by another function", "by another function, both routers"])
def test_what_another_function_cuts_off_is_told(release, case):
    off, on = (gone(release)[side][case] for side in ("off", "on"))
    assert off["returns"] == on["returns"]
    (said,) = [text for text in on["says"] if "have gradients" in text]
    assert "by_another_function" in said
    assert not [text for text in off["says"] if "have gradients" in text]


@each
def test_what_a_wrapper_around_the_layers_cuts_off_is_told(release):
    off, on = (gone(release)[side]["wrapped"] for side in ("off", "on"))
    assert off["returns"] == on["returns"]
    (said,) = [text for text in on["says"] if "have gradients" in text]
    assert "checkpoint_wrapper" in said
    assert not [text for text in off["says"] if "have gradients" in text]


@each
@pytest.mark.parametrize("case", ["wrapped, non-reentrant", "wrapped, nothing recorded", "without gradients"])
def test_what_nothing_is_cut_off_of_is_not(release, case):
    off, on = (gone(release)[side][case] for side in ("off", "on"))
    assert off == on
    assert not [text for text in on["says"] if "have gradients" in text]
