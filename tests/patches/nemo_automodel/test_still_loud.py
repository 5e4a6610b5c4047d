"""What saves Automodel's users without a patch must still do so, and what the fixed release refuses must be refused."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

OLDER = "nemo-automodel==0.4.0 & transformers==5.5.0"
NEWER = "nemo-automodel==0.6.0 & transformers==5.12.1"
FIXED = "nemo-automodel==0.7.0 & transformers==5.18.0"

DTYPE, QWEN = ("nemo_automodel.dtype_keyword", "nemo_automodel.qwen_vl_checkpoint_mapping")
RESTORE = "nemo_automodel.dtype_restore"

HEARD_AT_LAST = "a bad torch_dtype beside a good dtype"
"""Wrong without the patch only because `torch_dtype` is all that is looked at."""

MISREAD = ("no dtype", "for each part")
"""What the fixed release silently takes for bfloat16, by one name at least."""

pytestmark = pytest.mark.xdist_group("still_loud nemo-automodel")

each = pytest.mark.parametrize("environment", [OLDER, NEWER])


@functools.cache
def told(environment):
    about = ["dtype"] if environment == OLDER else ["dtype", "qwen"]
    return results(run_on(environment, HERE / "still_loud.py", *about, NRL_PATCHES=str(int(environment != FIXED))))


def told_of_dtypes(environment):
    """Return the cases with what is told of them unpatched, patched and in the fixed release."""
    found, fixed = told(environment)["dtype"], told(FIXED)["dtype"]["off"]
    assert found["status"][DTYPE] == "applied"
    assert found["off"].keys() == found["on"].keys() == fixed.keys()
    assert len(fixed) > 40
    return {case: (found["off"][case], found["on"][case], fixed[case]) for case in fixed}


def kind(outcome):
    return outcome.get("raises", "").partition(":")[0]


def report(outcome):
    """The lines of transformers' own report about the tensor in question."""
    return sorted({line for said in outcome["says"] for line in said.splitlines() if "q_proj" in line})


def test_the_patches_in_question_are_applied():
    assert told(OLDER)["dtype"]["status"][RESTORE] == "applied"
    assert told(NEWER)["qwen"]["status"][QWEN] == "applied"


@each
def test_what_the_fixed_release_refuses_is_refused(environment):
    refused = {case: outcomes for case, outcomes in told_of_dtypes(environment).items() if kind(outcomes[2])}
    assert len(refused) > 15
    for case, (_, on, fixed) in refused.items():
        # Of a checkpoint that is nowhere a newer release of the hub's library makes an error of its own.
        assert kind(on) == (kind(fixed) if "not there" not in case else "OSError"), case


@each
def test_what_the_release_refuses_without_the_patches_is_refused_unless_it_is_the_defect(environment):
    refused = {case: outcomes for case, outcomes in told_of_dtypes(environment).items() if kind(outcomes[0])}
    assert {"misspelt", "no dtype", "a misspelt keyword"} <= {case.partition(": ")[2].split(",")[0] for case in refused}
    accepted = {case: outcomes for case, outcomes in refused.items() if not kind(outcomes[1])}
    assert {case.partition(": ")[2] for case in accepted} == {HEARD_AT_LAST}
    for _, on, fixed in accepted.values():
        assert on["returns"] == fixed["returns"] == ["torch.float32"]


@each
def test_what_is_no_dtype_stays_with_who_refuses_it(environment):
    # The fixed release takes it for bfloat16, and so does 0.6.0 by the older name, which the patch must not use then.
    cases = {
        case: outcomes for case, outcomes in told_of_dtypes(environment).items() if any(m in case for m in MISREAD)
    }
    assert len(cases) == 12
    for case, (off, on, fixed) in cases.items():
        assert fixed["returns"] == ["torch.bfloat16"]
        assert on == off, case
    assert kind(cases["from_pretrained, force_hf: no dtype, dtype"][1])


@each
def test_what_is_said_without_the_patches_is_said_with_them(environment):
    for case, (off, on, _) in told_of_dtypes(environment).items():
        assert kind(on) or set(off["says"]) <= set(on["says"]), case


@each
@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_a_damaged_checkpoint_is_reported_as_in_the_fixed_release(environment, name):
    statuses = {
        "lacks a tensor": {"MISSING"},
        "has a tensor more": {"UNEXPECTED"},
        "names a tensor otherwise": {"MISSING", "UNEXPECTED"},
        "has a tensor of another shape": {"MISMATCH"},
    }
    for damage, told_as in statuses.items():
        off, on, fixed = told_of_dtypes(environment)[f"a checkpoint that {damage}, {name}"]
        assert report(on) == report(off) == report(fixed)
        assert {line.split("|")[1].strip() for line in report(on)} == told_as
        assert kind(on) == kind(fixed) == ("RuntimeError" if "shape" in damage else "")


def qwen_vl():
    found, fixed = told(NEWER)["qwen"], told(FIXED)["qwen"]["off"]
    return {case: (found["off"][case], found["on"][case], fixed[case]) for case in fixed}


def test_a_tensor_of_another_shape_is_refused_now_that_it_is_found():
    cases = {case: outcomes for case, outcomes in qwen_vl().items() if "shape" in case}
    assert len(cases) == 3
    for case, (off, on, _) in cases.items():
        part = case.partition(", ")[2]
        # Without the patch only the head is found at all.
        assert kind(off) == ("RuntimeError" if part == "lm_head" else "")
        assert on["raises"].startswith("RuntimeError: Error(s) in loading state_dict")
        assert "size mismatch for" in on["raises"]
        assert part in on["raises"]


def test_a_tensor_that_the_checkpoint_lacks_is_the_only_one_that_is_not_loaded():
    # Up to 0.6.0 nobody is told of it, with any model: the head is found without the patch as well. 0.7.0 loads in
    # another way, and raises.
    cases = {case: outcomes for case, outcomes in qwen_vl().items() if "otherwise" in case}
    assert len(cases) == 4
    for case, (off, on, fixed) in cases.items():
        assert off["says"] == on["says"] == []
        assert len(on["returns"]) == 1
        assert case.split(", ")[1] in on["returns"][0]
        assert set(on["returns"]) < set(off["returns"])
        assert f"Missing key in checkpoint state_dict: {on['returns'][0]}" in fixed["raises"]
