"""What holds for every patch, present and future, on every release of the default run.

A patch file dropped into ``nrl_patches/patches`` gets all of this without a line of test code.
"""

import functools
import json

import pytest
from packaging.version import Version
from releases import ENVIRONMENTS, results, run_on
from standins import ROOT

from nrl_patches.affected import Answer
from nrl_patches.installed import Installed
from nrl_patches.matrix.evidence import COMMITTED, Evidence
from nrl_patches.registry import load

SCRIPT = ROOT / "tests" / "contract_side.py"

EVIDENCE = Evidence.read(COMMITTED)

STATES = {"affected": "applied", "not affected": "not-affected", "not installed": "not-installed"}
"""What becomes of a patch, by what the versions say."""

every_release = pytest.mark.parametrize(
    "environment", [pytest.param(e, marks=pytest.mark.xdist_group(e)) for e in ENVIRONMENTS]
)
every_patch = pytest.mark.parametrize("patch_id", load().patches)


@functools.cache
def side(environment, name):
    return results(run_on(environment, SCRIPT, name, **({"NRL_PATCHES": "0"} if name == "off" else {})))


def cannot_be_measured(environment, patch_id):
    """Whether the committed evidence says that the probe has no answer there: two releases that do not go together."""
    measurement = EVIDENCE.measurements.get(environment)
    cell = None if measurement is None else measurement.cells.get(patch_id)
    return cell is not None and cell.present is None


@every_release
@every_patch
def test_without_the_patch_the_defect_is_there_exactly_where_it_was_declared(environment, patch_id):
    off = side(environment, "off")[patch_id]
    if cannot_be_measured(environment, patch_id):
        assert "error" in off
        return
    assert "error" not in off, off["error"]
    if off["present"] is None:
        assert off["affected"] in {"not installed", "not affected"}, off
    else:
        assert off["present"] == (off["affected"] == "affected"), off


@every_release
@every_patch
def test_with_the_patch_it_is_gone_and_elsewhere_the_patch_is_inert(environment, patch_id):
    on = side(environment, "on")[patch_id]
    if not cannot_be_measured(environment, patch_id):
        assert "error" not in on, on["error"]
        assert not on["present"], on
    assert on["state"] == STATES[on["affected"]], on
    assert on["marked"] == (on["state"] == "applied")
    assert not on["notes"]


@every_release
@every_patch
def test_import_apply_undo_in_every_permutation(environment, patch_id):
    outcomes = side(environment, "off")[patch_id]["permutations"]
    assert len(outcomes) == 9
    assert all(outcomes.values()), outcomes


@every_patch
def test_each_patch_was_needed_in_some_and_not_in_other_releases_of_this_run(patch_id):
    affected = load().patches[patch_id].affected
    environments = [dict(release.split("==") for release in e.split(" & ")) for e in ENVIRONMENTS]
    complete = [e for e in environments if e.keys() >= set(affected.distributions)]
    assert complete, "no environment of tests/releases.py has its distributions"
    answers = {affected.decide(lambda name, e=e: Installed(name, Version(e[name]))).answer for e in complete}
    assert answers == {Answer.YES, Answer.NO}


@pytest.mark.parametrize(
    ("environment", "verdicts"),
    [
        pytest.param(environment, verdicts, marks=pytest.mark.xdist_group(environment))
        for environment, verdicts in {
            "transformers==5.5.0": {
                "transformers.gemma4_kv_sharing_needs_cache": "needed",
                "transformers.gemma4_kv_sharing_fsdp2": "not affected",
                "nemo_automodel.dtype_restore": "not installed",
            },
            "nemo-automodel==0.6.0 & transformers==5.12.1": {
                "nemo_automodel.qwen_vl_checkpoint_mapping": "needed",
                "nemo_automodel.dtype_restore": "not affected",
            },
        }.items()
    ],
)
def test_the_tripwires_command_on_real_releases(environment, verdicts):
    done = run_on(environment, ROOT / "tests" / "run_command.py", "tripwires", *verdicts, "--format", "json")
    found = {t["id"]: t["verdict"] for t in json.loads(done.stdout)["tripwires"]}
    assert found == verdicts
