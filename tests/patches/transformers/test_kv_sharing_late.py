"""What reentrant checkpointing cannot repair is told before the optimizer's step, and under strict mode raised."""

from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

FOUND = "a gradient for the keys and values of {} that came afterwards, and is lost"


@pytest.mark.parametrize(
    ("family", "version", "donors"),
    [
        pytest.param(family, version, donors, marks=pytest.mark.xdist_group(family))
        for family, version, donors in (
            ("gemma4", "5.5.0", "2, 3"),
            ("gemma4", "5.8.1", "full_attention, sliding_attention"),
            ("gemma3n", "4.55.4", "2, 3"),
            ("gemma3n", "5.8.1", "2, 3"),
        )
    ],
)
def test_a_gradient_that_comes_too_late_is_told_before_the_step(family, version, donors):
    found = results(run_on(f"transformers=={version}", HERE / "kv_sharing_late.py", family))
    late, strict = found.pop("late"), found.pop("late, strict")
    (told,) = late["before the step"]
    assert FOUND.format(donors) in told
    assert "use_reentrant" in told
    assert strict["raised"] == f"FailedError: {told}"
    for outcome in (late, strict):
        assert outcome["after the step"] == []
    assert strict["before the step"] == []
    # Two passes through one graph: what the first has carried was fetched, and so is what the second carries.
    silent = {"before the step": [], "after the step": []}
    assert found == {"in time": silent, "in time, strict": silent}
