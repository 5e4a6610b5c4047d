"""``nrl-patches audit``: the answers, held against the evidence, and their reports."""

import json
import shutil
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from packaging.version import Version
from standins import ROOT

from nrl_patches.audit.answers import Hit, Repair, answer
from nrl_patches.audit.bump import bump
from nrl_patches.audit.pins import Pins, read_pins
from nrl_patches.audit.reports import FORMATS, Audit
from nrl_patches.cli.audit import audit
from nrl_patches.engine.registry import load, load_defects
from nrl_patches.matrix.evidence import COMMITTED, Evidence
from nrl_patches.matrix.names import parse_environment

HERE = Path(__file__).parent
EVIDENCE = Evidence.read(COMMITTED)
PATCHES = list(load())
SCHEMA = json.loads(resources.files("nrl_patches.audit").joinpath("schemas").joinpath("audit-1.json").read_text())

NEMO_RL = {
    "": {"transformers": "5.3.0"},
    "--extra automodel": {"transformers": "5.5.0"},
    "--extra sglang": {"transformers": "5.6.0"},
    "--extra trtllm": {"transformers": "5.5.4"},
    "--extra vllm": {"peft": "0.19.1", "transformers": "5.8.1", "vllm": "0.25.1"},
}


def pins(label="", **releases):
    return Pins(label, {name.replace("_", "-"): Version(version) for name, version in releases.items()})


def rows(**releases):
    return {row.id: row for row in answer(PATCHES, pins(**releases), EVIDENCE)}


def run(*args):
    done = CliRunner().invoke(audit, [str(arg) for arg in args])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def lock(tmp_path):
    return Path(shutil.copy(HERE / "nemo_rl.lock.toml", tmp_path / "uv.lock"))


@pytest.mark.parametrize("environment", [name for name in EVIDENCE.measurements if EVIDENCE.measurements[name].cells])
def test_every_measured_environment_is_answered_as_it_was_measured(environment):
    looked = Pins("", parse_environment(environment))
    found = {row.id: row for row in answer([*PATCHES, *load_defects()[0].values()], looked, EVIDENCE)}
    for patch_id, cell in EVIDENCE.measurements[environment].cells.items():
        if cell.present is not None:
            assert found[patch_id].hit is (Hit.YES if cell.present else Hit.NO), found[patch_id]
            # No range is bent around a release that was yanked.
            repair = Repair.YES if found[patch_id].kind == "patch" and cell.verdict != "uncovered" else Repair.NO
            assert not cell.present or found[patch_id].repair is repair


def test_each_combination_of_a_lock_in_nemo_rls_shape_is_answered_by_the_evidence(lock):
    names = {name for patch in PATCHES for name in patch.affected.distributions}
    answers = {p.label: answer(PATCHES, p, EVIDENCE) for p in read_pins(lock, names)}
    for label, expected in NEMO_RL.items():
        found = {row.id: row for row in answers[label]}
        for patch in PATCHES:
            cells = [
                m.cells[patch.id]
                for e, m in EVIDENCE.measurements.items()
                if patch.id in m.cells
                and {n: str(v) for n, v in parse_environment(e).items() if n in patch.affected.distributions}
                == {n: expected.get(n) for n in patch.affected.distributions}
            ]
            known = {cell.present for cell in cells if cell.present is not None}
            if known:
                assert found[patch.id].hit is (Hit.YES if known == {True} else Hit.NO), (label, found[patch.id])
    assert {row.id for row in answers["--extra automodel"] if row.hit is Hit.YES} == {
        "transformers.gemma4_kv_sharing_needs_cache",
        "transformers.gemma3n_kv_sharing_needs_cache",
        "transformers.qwen_vl_checkpoint_mapping",
        "transformers.absent_no_split_modules",
        "transformers.gpt_oss_masks_without_position_ids",
        "transformers.packing_under_mask_before_remapping",
        "transformers.qwen3_5_reads_wrong_saves",
        "transformers.byte_level_tokenizer_class",
        "transformers.hybrid_layers_start_over",
        "transformers.hybrid_models_drop_seq_idx",
        "transformers.mamba2_chunk_scan",
        "transformers.mamba2_time_step_limit_without_kernels",
        "transformers.nemotron_h_kernel_dtype",
        "transformers.nemotron_h_saved_names",
        "transformers.remote_tokenizer_ignored",
        "transformers.zamba2_kernel_dtype",
        "transformers.qwen3_omni_talker_config",
        "transformers.qwen3_5_saved_names",
        "transformers.accepts_loss_kwargs_denied",
        "transformers.accumulation_mean_of_means",
        "transformers.accepts_loss_kwargs_dropped",
        "transformers.router_loss_added_up",
        "transformers.recorded_outputs_reentrant_checkpointing",
        "transformers.gemma3_loss_ignores_token_count",
        "transformers.gemma3n_loss_ignores_token_count",
        "transformers.gemma4_loss_ignores_token_count",
        "transformers.gemma3_text_needs_token_type_ids",
        "transformers.gemma4_text_needs_token_type_ids",
        "transformers.paligemma_text_needs_token_type_ids",
        "transformers.trainer_divides_gradients_twice",
        "transformers.mamba_models_packed_state",
        "transformers.mamba_packed_state",
        "transformers.masks_without_position_ids",
        "transformers.olmo_hybrid_packed_state",
        "transformers.qwen3_5_moe_packed_state",
        "transformers.qwen3_5_packed_state",
        "transformers.qwen3_next_packed_state",
        "transformers.short_conv_packed_state",
        "transformers.single_row_padding",
    }
    # What is a checkout of Automodel has no number: nobody can say without looking.
    unmeasured = {row.id for row in answers["--extra automodel"] if row.hit is Hit.UNMEASURED}
    assert unmeasured == {"nemo_automodel.dtype_keyword", "nemo_automodel.dtype_restore"}


def test_beyond_what_was_measured_nobody_knows():
    found = rows(transformers="5.99.0")
    assert found["transformers.qwen_vl_base_model_visual"].hit is Hit.UNMEASURED
    assert found["transformers.qwen_vl_base_model_visual"].repair is Repair.UNKNOWN
    assert found["transformers.gemma4_kv_sharing_needs_cache"].hit is Hit.NO
    assert found["vllm.radio_layer_scale"].hit is Hit.ABSENT


def test_a_bump_tells_what_begins_what_ends_and_what_moved():
    changes = bump(PATCHES, pins(transformers="5.5.0"), pins(transformers="5.12.1"), EVIDENCE)
    effects = {change.id.partition(".")[2]: str(change.effect) for change in changes if str(change.effect) != "none"}
    assert effects == {
        "gemma3n_kv_sharing_needs_cache": "ends",
        "gemma4_kv_sharing_needs_cache": "ends",
        "gemma3n_kv_sharing_reentrant_checkpointing": "begins",
        "gemma4_kv_sharing_reentrant_checkpointing": "begins",
        "gemma4_kv_sharing_cpu_offload": "begins",
        "subclass_conversion_mapping": "begins",
        "qwen_vl_checkpoint_mapping": "stays",
        "byte_level_tokenizer_class": "stays",
        "hybrid_layers_start_over": "stays",
        "hybrid_models_drop_seq_idx": "stays",
        "mamba2_chunk_scan": "stays",
        "mamba2_time_step_limit_without_kernels": "stays",
        "nemotron_h_kernel_dtype": "stays",
        "nemotron_h_saved_names": "stays",
        "remote_tokenizer_ignored": "ends",
        "zamba2_kernel_dtype": "stays",
        "absent_no_split_modules": "stays",
        "dynamic_module_symlinks": "begins",
        "gpt_oss_masks_without_position_ids": "stays",
        "packing_under_mask_before_remapping": "stays",
        "paligemma_text_sees_its_labels": "begins",
        "qwen3_5_reads_wrong_saves": "stays",
        "qwen3_5_saved_names": "ends",
        "qwen3_omni_talker_config": "stays",
        "accepts_loss_kwargs_denied": "stays",
        "accumulation_mean_of_means": "stays",
        "accepts_loss_kwargs_dropped": "stays",
        "router_loss_added_up": "stays",
        "recorded_outputs_reentrant_checkpointing": "stays",
        "gemma3_loss_ignores_token_count": "stays",
        "gemma3n_loss_ignores_token_count": "ends",
        "gemma4_loss_ignores_token_count": "ends",
        "gemma3_text_needs_token_type_ids": "ends",
        "gemma4_text_needs_token_type_ids": "ends",
        "paligemma_text_needs_token_type_ids": "ends",
        "trainer_divides_gradients_twice": "ends",
        "mamba_models_packed_state": "stays",
        "mamba_packed_state": "stays",
        "masks_without_position_ids": "stays",
        "olmo_hybrid_packed_state": "stays",
        "qwen3_5_moe_packed_state": "stays",
        "qwen3_5_packed_state": "stays",
        "qwen3_next_packed_state": "stays",
        "short_conv_packed_state": "stays",
        "single_row_padding": "stays",
    }
    moved = {change.id: change.moved for change in changes}
    forward = "transformers.models.gemma4.modeling_gemma4:Gemma4TextAttention.forward"
    assert moved["transformers.gemma4_kv_sharing_needs_cache"][forward] == "changed"
    lookup = "transformers.conversion_mapping:get_checkpoint_conversion_mapping"
    assert lookup not in moved["transformers.qwen_vl_checkpoint_mapping"]


def test_targets_that_appear_and_vanish():
    older, newer = pins(nemo_automodel="0.4.0"), pins(nemo_automodel="0.2.0")
    place = "nemo_automodel._transformers.model_init:_restore_loaded_model_dtype"
    (there,) = (c.moved for c in bump(PATCHES, newer, older, EVIDENCE) if c.id == "nemo_automodel.dtype_restore")
    (gone,) = (c.moved for c in bump(PATCHES, older, newer, EVIDENCE) if c.id == "nemo_automodel.dtype_restore")
    assert (there[place], gone[place]) == ("new", "gone")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("transformers==5.5.0", 0),  # All that hits is repaired.
        ("transformers==5.3.0", 0),
        ("numpy==2.0", 0),
        ("transformers==5.99.0", 1),
    ],
)
def test_exit_codes(tmp_path, line, code):
    file = tmp_path / "requirements.txt"
    file.write_text(line)
    assert run(file).exit_code == code


@pytest.mark.parametrize("args", [["--from", __file__], ["nowhere.txt"], ["--with", "transformers"], ["--with", "x y"]])
def test_misuse(args):
    assert run(*args).exit_code == 2


def test_a_file_that_cannot_be_read_is_said_with_exit_code_3(tmp_path):
    (tmp_path / "uv.lock").write_text("version = 1\n")
    done = run(tmp_path / "uv.lock")
    assert done.exit_code == 3
    assert "no project in it" in done.output


def test_on_top_of_a_lock(lock):
    done = run(lock, "--with", "transformers==5.99.0", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert all(
        d["releases"].get("transformers", "5.99.0") == "5.99.0" for e in report["environments"] for d in e["defects"]
    )


def test_every_format_names_what_hits_and_the_json_keeps_its_schema(lock, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "old.py").write_text("import transformers\nOLD = transformers.__version__ < '5.9.0'\n")
    (tmp_path / "new.txt").write_text("transformers==5.99.0\n")
    (tmp_path / "old.txt").write_text("transformers==5.5.0\n")
    outputs = {name: tmp_path / f"report.{name}" for name in FORMATS}
    options = [o for name, file in outputs.items() for o in ("--format", name, "--output", file)]
    ends = ["--from", tmp_path / "old.txt", "--to", tmp_path / "new.txt"]
    done = run(lock, *ends, "--scan", tmp_path / "code", *options)
    assert done.exit_code == 1, done.output
    texts = {name: file.read_text() for name, file in outputs.items()}
    jsonschema.validate(json.loads(texts["json"]), SCHEMA)
    for name in ("text", "markdown", "json"):
        assert "transformers.gemma4_kv_sharing_needs_cache" in texts[name], name
    for name, text in texts.items():
        assert "old.py" in text, name
        assert "transformers.qwen_vl_base_model_visual" in text, name
    assert "::warning title=transformers.qwen_vl_base_model_visual%3A unmeasured::" in texts["github"]
    assert "::notice file=old.py,line=2,title=version as string::" in texts["github"]
    assert texts["markdown"].count("| begins |") == 0
    assert "| ends | `transformers.gemma4_kv_sharing_needs_cache` | not hit, needless |" in texts["markdown"]


def test_an_unknown_field_is_no_part_of_the_schema():
    report = json.loads(FORMATS["json"](Audit("today")))
    jsonschema.validate(report, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report | {"more": 1}, SCHEMA)


@pytest.mark.parametrize("width", [80, 140])
def test_a_table_keeps_its_width(lock, width):
    names = {name for patch in PATCHES for name in patch.affected.distributions}
    environments = [(p, answer(PATCHES, p, EVIDENCE)) for p in read_pins(lock, names)]
    text = FORMATS["text"](Audit("today", environments), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_the_example_workflow_runs_the_command_as_it_is():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "audit.yml").read_text(encoding="utf-8"))
    assert "**/uv.lock" in workflow[True]["pull_request"]["paths"]
    lines = [line for step in workflow["jobs"]["audit"]["steps"] for line in step.get("run", "").splitlines()]
    commands = [line.split() for line in lines if line.strip().startswith("nrl-patches audit")]
    assert commands
    options = {option for parameter in audit.params for option in parameter.opts}
    assert {word for words in commands for word in words if word.startswith("--")} <= options
