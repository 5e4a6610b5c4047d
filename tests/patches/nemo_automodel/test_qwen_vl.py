"""Qwen-VL checkpoints through Automodel's own loading, on the real pairs of releases."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

PATCH = "nemo_automodel.qwen_vl_checkpoint_mapping"
TRANSFORMERS_PATCH = "transformers.qwen_vl_checkpoint_mapping"
FAMILIES = ("qwen2_vl", "qwen2_5_vl")
VISION = {"qwen2_vl": 31, "qwen2_5_vl": 30}
TEXT = 26

TOWER = [("0.4.0", "5.5.0"), ("0.6.0", "5.5.4")]
"""Pairs that lose the vision tower: transformers' defect, seen from Automodel."""

EVERYTHING = [("0.4.0", "5.9.0"), ("0.6.0", "5.12.1"), ("0.6.0", "5.24.0")]
"""Pairs that lose every tensor that has another name in the model."""

NOTHING = [("0.5.0", "5.8.1"), ("0.7.0", "5.18.0")]
"""Their neighbours."""


def pair(automodel, transformers):
    return f"nemo-automodel=={automodel} & transformers=={transformers}"


def cases(pairs):
    return [pytest.param(pair(*p), id="-".join(p), marks=pytest.mark.xdist_group("-".join(p))) for p in pairs]


@functools.cache
def load(environment, *, patched):
    return results(run_on(environment, HERE / "qwen_vl_load.py", NRL_PATCHES=str(int(patched))))


@functools.cache
def shard(environment, *, patched):
    return results(run_on(environment, HERE / "qwen_vl_fsdp2.py", NRL_PATCHES=str(int(patched))))


@pytest.mark.parametrize("environment", cases(TOWER + EVERYTHING + NOTHING))
def test_every_tensor_equals_the_checkpoint(environment):
    report = load(environment, patched=True)
    for family in (*FAMILIES, "tied", "module_names", "text_only"):
        assert report[family] == [0, 0], family


@pytest.mark.parametrize("environment", cases(TOWER))
def test_unpatched_the_vision_tower_stays_random(environment):
    report = load(environment, patched=False)
    assert {family: report[family] for family in FAMILIES} == {family: [VISION[family], 0] for family in FAMILIES}


@pytest.mark.parametrize("environment", cases(EVERYTHING))
def test_unpatched_everything_but_the_head_stays_random(environment):
    report = load(environment, patched=False)
    assert {family: report[family] for family in FAMILIES} == {family: [VISION[family], TEXT] for family in FAMILIES}


@pytest.mark.parametrize("environment", cases(TOWER + EVERYTHING))
def test_lora_loads_the_base_and_keeps_its_adapter(environment):
    off, on = (load(environment, patched=patched)["lora"] for patched in (False, True))
    assert off["lost"][0] == VISION["qwen2_vl"]
    assert on["lost"] == [0, 0]
    assert on["adapter"] == on["kept"] == off["kept"] == 8


@pytest.mark.parametrize("environment", cases(TOWER + EVERYTHING))
def test_models_that_need_no_rule_are_left_alone(environment):
    report = load(environment, patched=True)
    assert report["answers"]["types"] > 400
    assert report["answers"]["changed"] == sorted(FAMILIES)
    for patched in (False, True):
        assert load(environment, patched=patched)["text_only"] == [0, 0]
        assert load(environment, patched=patched)["module_names"] == [0, 0]


@pytest.mark.parametrize("environment", cases(TOWER + EVERYTHING))
def test_the_copies_that_automodel_made_by_name_are_reached(environment):
    status = load(environment, patched=True)["status"]
    assert "applied" in {status[PATCH], status[TRANSFORMERS_PATCH]}
    if status[TRANSFORMERS_PATCH] == "applied":
        assert load(environment, patched=True)["answers"]["copy_reached"]


@pytest.mark.parametrize(
    ("environment", "lost"),
    [
        pytest.param(pair("0.4.0", "5.5.0"), (VISION, 0), marks=pytest.mark.xdist_group("0.4.0-5.5.0")),
        pytest.param(pair("0.6.0", "5.12.1"), (VISION, TEXT), marks=pytest.mark.xdist_group("0.6.0-5.12.1")),
    ],
)
def test_two_fsdp2_ranks_load_all_of_it_and_without_the_patch_they_do_not(environment, lost):
    vision, text = lost
    for rank in shard(environment, patched=True):
        for family in FAMILIES:
            assert rank[family]["lost"] == [0, 0]
            assert rank[family]["sharded"] == rank[family]["parameters"] > 50
            assert rank[family]["class"].startswith("FSDP")
    for rank in shard(environment, patched=False):
        assert {family: rank[family]["lost"] for family in FAMILIES} == {f: [vision[f], text] for f in FAMILIES}


@pytest.mark.parametrize("patched", [False, True])
def test_the_oldest_release_by_its_checkpointer(patched):
    # 0.3.0's model classes do not import here, and its import breaks transformers' own loading: it is no environment
    # of the contract.
    environ = {"NRL_PATCHES": str(int(patched))}
    done = run_on(pair("0.3.0", "5.9.0"), HERE.parent / "probe_alone.py", PATCH, **environ)
    found = results(done)
    assert found["present"] is not patched
    assert found["state"] == ("applied" if patched else "disabled")


def test_the_opt_out_switches_off_both_halves():
    environ = {"NRL_DISABLE_QWENVL_VISION_PATCH": "1"}
    found = results(run_on(pair("0.6.0", "5.12.1"), HERE / "qwen_vl_load.py", **environ))
    assert set(found["status"].values()) == {"disabled"}
    assert found["qwen2_vl"] == [VISION["qwen2_vl"], TEXT]


def test_a_renamed_target_is_drift():
    done = run_on(
        pair("0.6.0", "5.12.1"),
        HERE.parent / "renamed_target.py",
        "nemo_automodel.components.checkpoint.conversion_mapping",
        "def get_checkpoint_conversion_mapping(",
        "def look_up_conversion_mapping(",
        PATCH,
    )
    found = results(done)
    assert found["state"] == "drifted"
    assert "get_checkpoint_conversion_mapping to exist" in found["reason"]
    assert found["warnings"] == 1
