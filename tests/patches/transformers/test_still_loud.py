"""What saves users of Qwen-VL without a patch: the keys that are reported, the errors, PEFT's warning. It must stay."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

OLDER = "peft==0.19.0 & transformers==5.9.0"
NEWER = "peft==0.21.2 & transformers==5.24.0"

PATCHES = {
    OLDER: {"transformers.qwen_vl_checkpoint_mapping"},
    NEWER: {"transformers.qwen_vl_base_model_visual"},
}
BOTH = {"transformers.subclass_conversion_mapping", "peft.adapter_names_by_class"}

MISSING = "Found missing adapter keys while loading the checkpoint"

pytestmark = pytest.mark.xdist_group("still_loud transformers")

each = pytest.mark.parametrize("environment", [OLDER, NEWER])
each_layout = pytest.mark.parametrize("layout", ["hub", "modules"])


@functools.cache
def told(environment):
    return results(run_on(environment, HERE / "still_loud.py"))


def cases(environment, beginning):
    """Return what is told of some cases, unpatched and patched, by the rest of their names."""
    found = told(environment)
    chosen = [case for case in found["off"] if case.startswith(beginning)]
    assert chosen
    return {case.removeprefix(beginning): (found["off"][case], found["on"][case]) for case in chosen}


def told_of(outcome, word):
    """The lines about a tensor, as a report of transformers or a list of PEFT's has them."""
    return sorted({" ".join(line.split()) for said in outcome["says"] for line in said.splitlines() if word in line})


def summary(outcome):
    """What of an outcome does not depend on the name of the class."""
    return outcome.get("returns"), outcome.get("raises", "").partition(":")[0], told_of(outcome, "|")[1:]


@each
def test_the_patches_in_question_are_applied(environment):
    applied = {patch_id for patch_id, state in told(environment)["status"].items() if state == "applied"}
    assert applied >= PATCHES[environment] | BOTH


@each
@each_layout
def test_the_class_that_the_patches_do_not_touch_tells_what_it_told(environment, layout):
    for case, (off, on) in cases(environment, f"head: {layout} ").items():
        assert on == off
        if "otherwise" in case:
            (missing,), (unexpected,) = off["returns"]["missing_keys"], off["returns"]["unexpected_keys"]
            assert unexpected == f"{missing}_too"
            assert {line.split("|")[1].strip() for line in told_of(off, missing)} == {"MISSING", "UNEXPECTED"}
        else:
            assert off["raises"].startswith("RuntimeError: You set `ignore_mismatched_sizes` to `False`")
            assert "MISMATCH" in told_of(off, "|")[-1]


@each
@each_layout
def test_a_subclass_tells_what_its_base_tells(environment, layout):
    right = cases(environment, f"head: {layout} ")
    for case, (_, on) in cases(environment, f"subclass: {layout} ").items():
        assert summary(on) == summary(right[case][0]), case


@each
@each_layout
def test_the_class_without_a_head_tells_it_too(environment, layout):
    right = cases(environment, f"head: {layout} ")
    for case, (_, on) in cases(environment, f"base: {layout} ").items():
        expected = right[case][0]
        if "otherwise" in case:
            # The checkpoint's head is unexpected here, and what is unexpected keeps the checkpoint's prefix.
            for kind in ("missing_keys", "unexpected_keys"):
                found, right_ones = (
                    {key.replace("model.", "") for key in outcome["returns"][kind]} for outcome in (on, expected)
                )
                assert found - {"lm_head.weight"} == right_ones, case
            assert "MISSING" in str(on["says"])
        else:
            assert on["raises"] == expected["raises"]
            assert "MISMATCH" in str(on["says"])


@each
@pytest.mark.parametrize("way", ["PeftModel", "load_adapter"])
def test_a_damaged_adapter_of_old_names_is_reported_as_one_of_todays(environment, way):
    old = cases(environment, f"{way}: adapter old ")
    new = cases(environment, f"{way}: adapter new ")
    assert len(old) == 4
    for case, (off, on) in new.items():
        assert on == off
        assert old[case][1] == off, case
        if "shape" in case:
            assert "size mismatch for" in off["raises"]
        elif way == "PeftModel":
            (name,) = off["returns"]
            assert MISSING in str(off["says"])
            assert name.removesuffix(".weight") in str(off["says"])
        else:
            assert [len(off["returns"][kind]) for kind in ("missing", "unexpected")] == [1, 1]


@each
@pytest.mark.parametrize("way", ["PeftModel", "load_adapter"])
@pytest.mark.parametrize("kind", ["of another model", "without PEFT's prefix", "of both names"])
def test_an_adapter_that_is_not_the_models_tells_what_it_told(environment, way, kind):
    ((off, on),) = cases(environment, f"{way}: adapter {kind}").values()
    assert on == off
    if way == "PeftModel" and "both" not in kind:
        assert MISSING in str(off["says"])
        assert len(off["returns"]) == 8
    elif way == "load_adapter":
        assert len(off["returns"]["unexpected"]) == 8
