"""Text alone trains without types of tokens; all else is as it was, bit by bit, and refused where it was refused."""

import functools
from pathlib import Path

import pytest
from releases import results, run_on

SCRIPT = Path(__file__).parent / "token_types_unchanged.py"

RELEASES = {"5.0.0": ("gemma3", "paligemma"), "5.5.4": ("gemma3", "gemma4", "paligemma")}

each = pytest.mark.parametrize(
    "release", [pytest.param(r, marks=pytest.mark.xdist_group(f"transformers=={r}")) for r in RELEASES]
)


@functools.cache
def told(release):
    return results(run_on(f"transformers=={release}", SCRIPT, *RELEASES[release]))


@each
def test_text_alone_is_changed(release):
    found = told(release)
    changed = {case for case, off in found["off"].items() if found["on"][case] != off}
    assert changed == {f"{family}: repaired" for family in RELEASES[release]}


@each
def test_what_may_have_images_is_refused_without_types(release):
    for case, outcome in told(release)["on"].items():
        assert ("token_type_ids` is required" in outcome.get("raises", "")) is ("refused" in case), (case, outcome)
