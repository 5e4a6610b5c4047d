"""The dtype that was asked for, through Automodel's real ``from_pretrained``, and what it does to the training."""

import functools
from collections import Counter
from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

PATCH = "nemo_automodel.dtype_restore"
AFFECTED = "nemo-automodel==0.4.0 & transformers==5.5.0"
FIXED = "nemo-automodel==0.5.0 & transformers==5.8.1"

LLAMA, LLAMA_FP16, NEMOTRON = "llama bfloat16", "llama float16", "nemotron_h bfloat16"
FLOAT32 = ("float32", "'float32'", "dtype=float32")

pytestmark = pytest.mark.xdist_group("dtype_restore")  # so that each load is made once


@functools.cache
def load(environment=AFFECTED, *, patched=True):
    return results(run_on(environment, HERE / "dtype_load.py", NRL_PATCHES=str(int(patched))))


@functools.cache
def learn(*, patched):
    return results(run_on(AFFECTED, HERE / "dtype_learn.py", NRL_PATCHES=str(int(patched))))


def dtypes(checkpoint, request, **kwargs):
    return dict(Counter(load(**kwargs)[checkpoint][request]["dtypes"].values()))


def wide(checkpoint, request, **kwargs):
    """The parameters in float32, by the last part of their names."""
    found = load(**kwargs)[checkpoint][request]["dtypes"]
    return {name.rpartition(".")[2] for name, dtype in found.items() if dtype == "float32"}


@pytest.mark.parametrize("checkpoint", [LLAMA, LLAMA_FP16, NEMOTRON])
@pytest.mark.parametrize("asked", FLOAT32)
def test_an_explicit_float32_is_kept_in_every_tensor(checkpoint, asked):
    assert load()["status"] == "applied"
    assert set(dtypes(checkpoint, asked)) == {"float32"}
    assert load()[checkpoint][asked]["altered"] == []


@pytest.mark.parametrize("checkpoint", [LLAMA, LLAMA_FP16, NEMOTRON])
@pytest.mark.parametrize("asked", FLOAT32)
def test_unpatched_it_is_cast_back(checkpoint, asked):
    # What stays in float32 of Nemotron-H has it in the file too (six tensors), or another name there (three).
    kept = {"float32": 9} if checkpoint == NEMOTRON else {}
    assert dtypes(checkpoint, asked, patched=False) == kept | {checkpoint.partition(" ")[2]: 23 if kept else 21}


@pytest.mark.parametrize("asked", ["auto", "nothing", "bfloat16"])
def test_what_the_file_says_is_restored_as_before(asked):
    for checkpoint in (LLAMA, NEMOTRON):
        assert load()[checkpoint][asked] == load(patched=False)[checkpoint][asked]
    assert set(dtypes(LLAMA, asked)) == {"bfloat16"}
    # Which is what doing nothing in the place of the restoring would lose.
    assert wide(NEMOTRON, asked) == {"A_log", "D", "dt_bias"}


def test_a_16_bit_request_is_not_exchanged_for_the_other_16_bits():
    assert set(dtypes(LLAMA_FP16, "bfloat16")) == {"bfloat16"}
    assert set(dtypes(LLAMA_FP16, "bfloat16", patched=False)) == {"float16"}
    assert load(patched=False)[LLAMA_FP16]["bfloat16"]["altered"]  # and the values are not the file's
    assert set(dtypes(LLAMA_FP16, "auto")) == {"float16"}


@pytest.mark.parametrize("checkpoint", [LLAMA, NEMOTRON])
def test_the_release_with_upstreams_fix_agrees(checkpoint):
    assert load(FIXED)["status"] == "not-affected"
    assert load(FIXED)[checkpoint]["float32"]["dtypes"] == load()[checkpoint]["float32"]["dtypes"]


def test_adamw_stalls_without_the_patch_and_learns_with_it():
    off, on = learn(patched=False), learn(patched=True)
    for name, run in (("off", off), ("on", on)):
        curve = " ".join(f"{run['losses'][step]:.3f}" for step in (0, 25, 50, 75, 100, 125, 150, 175, 199))
        print(f"{name:3} {run['dtype']}: {curve}; moved {run['moved']} of {run['weights']} weights")
    drop_off, drop_on = (run["losses"][0] - run["losses"][-1] for run in (off, on))
    print(f"the loss fell by {drop_off:.3f} off, {drop_on:.3f} on: {drop_on / drop_off:.1f} times as far")
    assert abs(off["losses"][0] - on["losses"][0]) < 0.05
    assert drop_on > 5 * drop_off
    assert off["moved"] < 0.1 * off["weights"]
    assert on["moved"] > 0.9 * on["weights"]


@pytest.mark.parametrize("version", ["0.5.0rc0", "0.5.0+6de0c361"])
@pytest.mark.parametrize(("environment", "state"), [(AFFECTED, "applied"), (FIXED, "not-affected")])
def test_builds_between_the_releases_are_decided_by_the_guard(environment, state, version):
    found = results(run_on(environment, HERE / "dtype_between_releases.py", version))
    assert found["state"] == state
    assert "the guard decided" in found["reason"]


def test_before_0_4_0_nothing_restores_dtypes():
    assert oldest()["restore"] == {"absent": "_restore_loaded_model_dtype"}


@pytest.mark.parametrize("patched", [False, True])
def test_every_argument_can_be_given_by_its_name(patched):
    found = load(patched=patched)["by keyword"]
    assert found["named"][:2] == ["cls", "pretrained_model_name_or_path_or_config"]
    assert found["dtypes"] == [f"torch.{'float32' if patched else 'bfloat16'}"] * (len(found["named"]) + 1)
    assert found["complaint"] == load(patched=False)["by keyword"]["complaint"]


WAYS = ("from_pretrained", "from_pretrained of Hugging Face", "from_config", "from_config of Hugging Face")
HEARD = {
    "float32": "float32",
    "'float32'": "float32",
    "'torch.float32'": "float32",
    "bfloat16": "bfloat16",
    "'auto'": "bfloat16",
    "None": "bfloat16",
    "'fp32'": "KeyError",  # as for torch_dtype, in every release
    "torch_dtype=float32": "float32",
    "torch_dtype='auto'": "bfloat16",
    "nothing": "bfloat16",
    "torch_dtype=float32, None": "float32",
    "torch_dtype=float32, bfloat16": "bfloat16",
    "torch_dtype=bfloat16, float32": "float32",
}
"""What nemo-automodel 0.7.0 makes of each request of dtype_requests.py, on every way."""


@functools.cache
def oldest():
    return results(run_on("nemo-automodel==0.3.0 & transformers==5.3.0", HERE / "dtype_requests.py"))


def requested(environment):
    return load(environment)["requests"] if "0.3.0" not in environment else oldest()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("environment", ["0.3.0", AFFECTED, FIXED])
def test_a_dtype_by_its_newer_name_is_heeded_as_in_0_7_0(environment, way):
    found = requested(environment)
    assert found["status"] == "applied"
    if environment == "0.3.0" and way == "from_pretrained of Hugging Face":
        # Automodel 0.3.0 itself refuses to load this way under transformers 5.3.0, whatever is asked for.
        assert set(found["on"][way].values()) == {"TypeError", "KeyError"}
    else:
        assert found["on"][way] == HEARD


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("environment", ["0.3.0", AFFECTED, FIXED])
def test_without_the_patch_the_newer_name_is_ignored_or_refused(environment, way):
    found = requested(environment)["off"][way]
    assert found["torch_dtype=float32"] == requested(environment)["on"][way]["torch_dtype=float32"]
    if way == "from_pretrained":
        assert found["'float32'"] == "TypeError"
    elif "config" in way or environment == FIXED:  # 0.4.0 is helped by dtype_restore on the remaining way.
        assert found["'float32'"] == found["float32"] == "bfloat16"


@pytest.mark.parametrize(
    ("variable", "value"), [("NRL_DISABLE_AUTOMODEL_DTYPE_PATCH", "1"), ("NRL_PATCHES_DISABLE", PATCH)]
)
def test_opt_outs(variable, value):
    found = results(run_on(AFFECTED, HERE.parent / "probe_alone.py", PATCH, **{variable: value}))
    assert (found["state"], found["present"]) == ("disabled", True)


def test_a_renamed_target_is_drift():
    done = run_on(
        AFFECTED,
        HERE.parent / "renamed_target.py",
        "nemo_automodel._transformers.model_init",
        "_restore_loaded_model_dtype",
        "_restore_dtypes",
        PATCH,
    )
    found = results(done)
    assert found["state"] == "drifted"
    assert "_restore_loaded_model_dtype to exist" in found["reason"]
    assert found["warnings"] == 1
