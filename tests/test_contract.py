"""What holds for every patch, present and future, on every release of the default run.

A patch file dropped into ``nrl_patches/patches`` gets all of this without a line of test code.
"""

import functools

import pytest
from releases import ENVIRONMENTS, results, run_on
from standins import ROOT

from nrl_patches.registry import load

SCRIPT = ROOT / "tests" / "contract_side.py"

every_release = pytest.mark.parametrize(
    "environment", [pytest.param(e, marks=pytest.mark.xdist_group(e)) for e in ENVIRONMENTS]
)
every_patch = pytest.mark.parametrize("patch_id", load().patches)


@functools.cache
def side(environment, name):
    return results(run_on(environment, SCRIPT, name, **({"NRL_PATCHES": "0"} if name == "off" else {})))


@every_release
@every_patch
def test_without_the_patch_the_defect_is_there_exactly_where_it_was_declared(environment, patch_id):
    off = side(environment, "off")[patch_id]
    assert "error" not in off, off["error"]
    assert off["present"] == (off["affected"] == "affected"), off


@every_release
@every_patch
def test_with_the_patch_it_is_gone_and_elsewhere_the_patch_is_inert(environment, patch_id):
    on = side(environment, "on")[patch_id]
    assert "error" not in on, on["error"]
    assert not on["present"], on
    affected = on["affected"] == "affected"
    assert on["state"] == ("applied" if affected else "not-affected"), on
    assert on["marked"] == affected
    assert not on["notes"]


@every_release
@every_patch
def test_import_apply_undo_in_every_permutation(environment, patch_id):
    outcomes = side(environment, "off")[patch_id]["permutations"]
    assert len(outcomes) == 9
    assert all(outcomes.values()), outcomes


@every_patch
def test_each_patch_was_needed_in_some_and_not_in_other_releases_of_this_run(patch_id):
    patch = load().patches[patch_id]
    (distribution,) = patch.affected.distributions
    versions = [e.partition("==")[2] for e in ENVIRONMENTS if e.startswith(f"{distribution}==")]
    inside = [any(part.releases.contains(v) for (part,) in patch.affected.alternatives) for v in versions]
    assert any(inside)
    assert not all(inside)
