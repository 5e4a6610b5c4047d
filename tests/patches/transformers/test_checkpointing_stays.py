"""Gradient checkpointing must stay what it is in layers that a patch replaces, wherever transformers does it.

Equal gradients say nothing of that: a step without checkpointing has them too.
"""

from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

pytestmark = pytest.mark.xdist_group("checkpointing_stays")


@pytest.mark.parametrize("environment", ["transformers==5.22.2", "transformers==5.23.0"])
def test_each_mixer_runs_once_more_in_the_backward_pass(environment):
    seen = results(run_on(environment, HERE / "checkpointing_stays.py"))
    assert len(seen) == 12
    assert {name: step["runs"] for name, step in seen.items()} == dict.fromkeys(seen, 2)
    assert {name: step["far"] for name, step in seen.items() if step["far"] > 1e-4} == {}
