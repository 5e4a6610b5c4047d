"""The command on the real vLLM, on the CPU, and the real transformers: what is sound passes, planted faults are found.

One engine serves as much as it can: starting one takes longer than everything that it is asked for.
"""

import shutil

import jsonschema
import pytest
from diagnose.running import HERE, build, findings, only, run
from diagnose.test_report import SCHEMA

pytestmark = pytest.mark.xdist_group("engines")

ALL = ("agreement", "max-model-len", "decode-vs-prefill", "embeddings", "prefix-cache", "refit", "packed-vs-padded")
SMALL = ("--length", "33", "--length", "97", "--batch", "2", "--repeats", "2", "--trainer-new-tokens", "4")
DROPPED = "model.layers.1.mlp.down_proj.weight"
ONES = "packed with a mask of ones, against padded"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture(scope="module")
def passed(sound, tmp_path_factory):
    folder = tmp_path_factory.mktemp("passed")
    return folder, *run(sound, folder, *SMALL, *only(*ALL, "compilation-modes"), "--mode", "eager")


@pytest.fixture(scope="module")
def failed(sound, tmp_path_factory):
    faulty = build(tmp_path_factory.mktemp("models") / "faulty", "scrambled", "nan", "untrained")
    planted = ["--trainer-model", faulty, "--engine-path", f"planted={HERE / 'planted'}", "--state", "off"]
    small = ("--length", "97", "--batch", "2", "--repeats", "1", "--trainer-new-tokens", "4", "--method", "greedy")
    code, report, _ = run(sound, tmp_path_factory.mktemp("failed"), *planted, *small, *only(*ALL))
    assert code == 1
    return report


def test_a_sound_model_passes_with_the_patches(passed):
    _, code, report, done = passed
    verdicts = {name: found["verdict"] for name, found in findings(report, "on").items()}
    assert verdicts.pop(("compilation-modes", "eager")) == "compared"
    assert set(verdicts.values()) == {"ok"}, verdicts
    assert {name for name, _ in verdicts} == set(ALL) - {"agreement"}
    assert {row["verdict"] for row in report["agreement"]} == {"ok"}
    assert len(report["agreement"]) == 2 * 2 * 2 * 2  # States, lengths, texts, methods.
    assert code == 0
    assert done.stdout.startswith("**PASSED")
    jsonschema.validate(report, SCHEMA)


def test_both_halves_agree_and_repetitions_are_the_same(passed):
    for row in passed[2]["agreement"]:
        for half in (row["error"], row["other"], row["both"]):
            assert half == pytest.approx(1, abs=1e-4)
        assert row["same_tokens"]
        assert row["distance"]["tokens"] == 2 * (row["row"]["length"] // 2)
        assert len(row["worst"]) == 5
        assert abs(row["worst"][0]["gap"]) < 1e-3


def test_what_a_patch_is_worth_is_the_difference_between_off_and_on(passed):
    # transformers 5.23.0 takes a mask of ones for one sequence: the mask leaks.
    off, on = (findings(passed[2], state)["packed-vs-padded", ONES] for state in ("off", "on"))
    assert (off["verdict"], off["applied"]) == ("fault", [])
    assert off["figures"]["largest"] > 0.1
    assert (on["verdict"], "transformers.packing_under_mask" in on["applied"]) == ("ok", True)
    others = [f for name, f in findings(passed[2], "off").items() if name[1] != ONES]
    assert {found["verdict"] for found in others} == {"ok"}


def test_the_report_and_the_picture_are_there(passed):
    folder = passed[0]
    assert "| 97 | Synthetic | Sampling | 2 | 1.0000 | 1.0000 |" in (folder / "report.md").read_text(encoding="utf-8")
    assert (folder / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert not list((folder / "work").glob("weights-*"))


def test_what_is_finished_is_not_run_again(passed, sound):
    folder, _, report, _ = passed
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "rows").iterdir()}
    (lost,) = (file for file in (folder / "rows").glob("packed-on-*"))
    lost.unlink()
    code, again, done = run(sound, folder, *SMALL, *only(*ALL, "compilation-modes"), "--mode", "eager")
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "rows").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {lost.name}
    assert (code, again["agreement"]) == (0, report["agreement"])
    assert "trainer, patches on: 1 to do" in done.stderr
    assert "engine, patches" not in done.stderr


def test_a_scrambled_weight_and_a_nan_are_found(failed):
    real, synthetic = failed["agreement"]
    assert (real["row"]["data"], synthetic["row"]["data"]) == ("real", "synthetic")
    assert real["verdict"] == synthetic["verdict"] == "fault"
    assert real["error"] > 1.05
    assert synthetic["error"] is None
    assert "NaN" in synthetic["reason"]


def test_a_sequence_beyond_the_limit_is_found(failed):
    found = findings(failed, "off")["max-model-len", "planted"]
    assert found["verdict"] == "fault"
    assert found["figures"]["longest"] == found["figures"]["limit"] + 1


def test_decoding_that_is_not_prefill_is_found(failed):
    assert findings(failed, "off")["decode-vs-prefill", "planted"]["verdict"] == "fault"


def test_a_nan_after_a_cached_prefix_is_found(failed):
    found = findings(failed, "off")["prefix-cache", "planted"]
    assert found["verdict"] == "fault"
    assert "after a cached prefix are NaN" in found["reason"]


def test_a_weight_that_no_refit_has_written_is_found(failed):
    found = findings(failed, "off")["refit", "planted"]
    assert found["verdict"] == "fault"
    assert DROPPED in found["figures"]["unwritten"]


def test_untrained_rows_are_found(failed):
    found = findings(failed, "off")["embeddings", ""]
    assert found["verdict"] == "fault"
    tensors = found["figures"]["tensors"]
    assert not found["figures"]["tied"]
    assert tensors["lm_head.weight"]["ranges"]["zero"] == "7-9,400"
    assert tensors["model.embed_tokens.weight"]["ranges"]["identical"] == "20"
    assert tensors["model.embed_tokens.weight"]["ranges"]["copies"] == "31"
    assert tensors["model.embed_tokens.weight"]["count"]["nan"] == 1


def test_a_model_of_the_hub_is_taken_by_its_id(sound, tmp_path, monkeypatch):
    # As the hub's own library keeps what it has downloaded; there is no hub in a test.
    commit = "0" * 40
    kept = tmp_path / "hub" / "models--acme--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.copytree(sound, kept / "snapshots" / commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = (*only("embeddings"), "--state", "on")
    code, report, _ = run("acme/tiny", tmp_path / "told", *options)
    assert {found["verdict"] for found in report["findings"]} == {"ok"}
    assert code == 0
    _, report, _ = run("acme/another", tmp_path / "unknown", *options)
    assert {found["verdict"] for found in report["findings"]} == {"not-run"}
    assert all("the model cannot be read: " in found["reason"] for found in report["findings"])
