"""Which processes are started for what, and when a result is one of something else."""

import json
from dataclasses import replace

from nrl_patches.diagnose.plan import Plan
from nrl_patches.diagnose.settings import DIAGNOSTICS, Known, Settings

SETTINGS = Settings("acme/model", modes=("eager", "inductor"))
KNOWN = Known(("real", "synthetic"), 32768)


def tasks(plan):
    return [task for stage in plan.stages() for task in stage]


def test_the_table_is_that_of_the_guide_by_default():
    plan = Plan(SETTINGS, KNOWN, "on", "")
    rows = plan.rows()
    assert {row.length for row in rows} == {100, 1000, 10_000}
    assert {row.batch for row in rows} == {1, 8, 32}
    assert len(rows) == 3 * 2 * 2 * 3
    sampled = [task for task in tasks(plan) if task.kind == "sample" and task.group.side == "engine"]
    assert len(sampled) == len(rows) * SETTINGS.repeats


def test_each_state_has_one_engine_for_all_but_refit_and_modes():
    for state, engines in (("off", 2), ("on", 4)):
        groups = {task.group for task in tasks(Plan(SETTINGS, KNOWN, state, "")) if task.group.side == "engine"}
        assert len(groups) == engines
        assert {group.state for group in groups} == {state}


def test_every_diagnostic_alone_has_something_to_run():
    for name in DIAGNOSTICS:
        assert tasks(Plan(replace(SETTINGS, only=frozenset({name})), KNOWN, "on", "")), name


def test_what_is_scored_is_sampled_before():
    plan = Plan(SETTINGS, KNOWN, "on", "")
    done = set()
    for stage in plan.stages():
        for task in stage:
            sampled = json.loads(task.parameters).get("sampled")
            assert sampled is None or sampled in done
        done |= {plan.name(task) for task in stage}


def test_lengths_beyond_the_positions_are_left_out_and_the_engine_fits_into_them():
    plan = Plan(SETTINGS, Known(("real",), 512), "on", "")
    assert {row.length for row in plan.rows()} == {100}
    longer = Plan(SETTINGS, Known(("real",), 1008), "on", "")
    assert json.loads(longer.engine("").arguments)["max_model_len"] == 1008


def test_a_result_is_of_another_file_when_anything_changes():
    (row, *_) = Plan(SETTINGS, KNOWN, "on", "").rows()
    plans = [
        Plan(SETTINGS, KNOWN, "on", ""),
        Plan(SETTINGS, KNOWN, "off", ""),
        Plan(SETTINGS, KNOWN, "on", "another release"),
        Plan(replace(SETTINGS, engine_args={"block_size": 16}), KNOWN, "on", ""),
        Plan(replace(SETTINGS, dtype="float32"), KNOWN, "on", ""),
        Plan(replace(SETTINGS, new_tokens=8), KNOWN, "on", ""),
    ]
    assert len({plan.name(plan.sampled(row)[0]) for plan in plans}) == len(plans)
