"""The table, the verdicts and the exit code, from results that were made up."""

import json
import math
from dataclasses import replace

import jsonschema
import pytest
from standins import ROOT

from nrl_patches.diagnose.agreement import agreement
from nrl_patches.diagnose.judge import COMPARED, FAULT, NOT_RUN, OK, Finding
from nrl_patches.diagnose.picture import draw
from nrl_patches.diagnose.plan import Plan
from nrl_patches.diagnose.report import as_json, as_markdown, headline
from nrl_patches.diagnose.run import Outcome, exit_code
from nrl_patches.diagnose.settings import Known, Settings

SCHEMA = json.loads((ROOT / "nrl_patches" / "diagnose" / "schemas" / "diagnose-1.json").read_text(encoding="utf-8"))
SETTINGS = Settings("acme/model", lengths=(8,), data=("real",), methods=("greedy",), batches=(2,), repeats=2)
WORST = {"sequence": 0, "position": 5, "gap": 0.2, "engine": -1.2, "trainer": -1.0, "id": 3, "text": "|", "after": "`"}


def rows(state, gap, tokens=((1, 2), (1, 2)), other=0.0):
    """The table, where both sides are a gap apart, in repetitions that sampled some tokens."""
    plan = Plan(SETTINGS, Known(("real",), 64), state, "fingerprint")
    (row,) = plan.rows()
    sampled = {task: tokens[n] for n, task in enumerate(plan.sampled(row))}
    scored = {plan.scored(task, "transformers") for task in sampled}

    def result(task):
        if task in sampled:
            return {"tokens": [list(sampled[task])], "logprobs": [[-1.0, -1.0]], "applied": ["vllm.radio_layer_scale"]}
        if task in scored:
            return {"logprobs": [[-1.0 + gap, -1.0]], "worst": [WORST], "applied": []}
        return {"logprobs": [[-1.0 + other if task.group.side == "engine" else -1.0]], "applied": []}

    return agreement(plan, result)


def outcome(*findings, off=0.2, on=0.0):
    found = [*rows("off", off), *rows("on", on)]
    return Outcome(SETTINGS, found, findings, {"engine": {"vllm": "0.30.0", "has vllm": True}})


def test_a_row_has_both_halves_and_their_mean():
    (row,) = rows("on", 0.1, other=0.2)
    assert row.error == pytest.approx((math.exp(0.1) + 1) / 2)
    assert row.other == pytest.approx(math.exp(0.2))
    assert row.both == pytest.approx((row.error + row.other) / 2)
    assert (row.verdict, row.same_tokens, row.spread) == (FAULT, True, 0)
    assert "sampled from the trainer, is above 1.05" in row.reason


def test_repetitions_with_other_tokens_are_said():
    (row,) = rows("on", 0.0, tokens=((1, 2), (1, 3)))
    assert (row.same_tokens, row.verdict) == (False, OK)


def test_a_nan_is_a_fault_and_no_number():
    found = Outcome(SETTINGS, rows("on", math.nan))
    (row,) = found.rows
    assert row.verdict == FAULT
    assert "2 of 5 log-probabilities are NaN" in row.reason  # One of each repetition, and the other half has one token.
    told = json.loads(as_json(found), parse_constant=pytest.fail)
    assert told["agreement"][0]["error"] is None
    assert told["agreement"][0]["positions"][0][1] is None
    assert "| NaN |" in as_markdown(found)


def test_the_report_follows_its_schema():
    figures = {"largest": math.inf, "cases": [{"prompt": 1}]}
    jsonschema.validate(json.loads(as_json(outcome(Finding("refit", "on", "", OK, "well", figures, ("a.b",))))), SCHEMA)


def test_the_table_is_that_of_the_guide_with_off_beside_on():
    text = as_markdown(outcome())
    assert "| Sequence Length | Data Type | Generation Method | Batch Size | HF vs vLLM, off | HF vs vLLM, on |" in text
    assert f"| 8 | Real | Greedy | 2 | {(math.exp(0.2) + 1) / 2:.4f} | 1.0000 |" in text
    assert "off fault, on ok" in text
    assert "| `'` | `\\|` | -1.2 | -1 |" in text  # Nothing of a token breaks the table.


@pytest.mark.parametrize(
    ("found", "code", "word"),
    [
        (outcome(), 0, "PASSED"),
        (outcome(on=0.2), 1, "FAILED"),
        (outcome(Finding("refit", "off", "", FAULT, "")), 0, "PASSED"),
        (outcome(Finding("compilation-modes", "on", "eager", COMPARED, "")), 0, "PASSED"),
        (outcome(Finding("refit", "on", "", NOT_RUN, "")), 3, "INCOMPLETE"),
        (outcome(Finding("refit", "on", "", NOT_RUN, ""), on=0.2), 1, "FAILED"),
        (Outcome(SETTINGS), 3, "INCOMPLETE"),
    ],
)
def test_the_exit_code_is_that_of_the_patched_side(found, code, word):
    assert exit_code(found) == code
    assert headline(found).startswith(f"{word}: acme/model")
    assert json.loads(as_json(found))["passed"] is (code == 0)


def test_the_picture_has_a_panel_for_each_length(tmp_path):
    file = tmp_path / "errors.svg"
    longer = [replace(row, row=row.row._replace(length=16)) for row in outcome().rows]
    assert draw([*outcome().rows, *longer], 1.05, file)
    assert file.read_text(encoding="utf-8").count('id="axes_') == 2
    assert not draw([], 1.05, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
