"""Rows of which none is packed keep what they had, to the last bit: padded, cached, generated, compiled, exported."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

SCRIPT = Path(__file__).parent / "packing_unchanged.py"

RELEASES = ("4.53.1", "5.23.0")

each = pytest.mark.parametrize(
    "release", [pytest.param(r, marks=pytest.mark.xdist_group(f"transformers=={r}")) for r in RELEASES]
)


@functools.cache
def told(release):
    return results(run_on(f"transformers=={release}", SCRIPT))


@each
def test_only_packed_rows_are_changed(release):
    found = told(release)
    changed = {case for case, off in found["off"].items() if found["on"][case] != off}
    assert changed == {"packed"}


@each
def test_all_but_a_mask_without_values_can_be_done_without_the_patches(release):
    raised = [case for case, outcome in told(release)["off"].items() if "raises" in outcome]
    assert all(case.startswith("on meta") for case in raised), raised


@each
def test_packed_and_other_rows_share_a_graph(release):
    assert told(release)["on"]["graphs"]["returns"] == 1
