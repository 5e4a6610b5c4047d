"""KV-shared layers that nemo-automodel shards and checkpoints, and that its own holder of shared states may meet."""

from pathlib import Path

import pytest
from releases import results, run_on

HERE = Path(__file__).parent

pytestmark = pytest.mark.xdist_group("kv_sharing automodel")


def trained(environment, **options):
    found = results(run_on(environment, HERE / "kv_sharing_automodel.py", "gemma4", "gemma3n", **options))
    assert found["gemma4"].get("held", 0) == 0
    return found


@pytest.mark.parametrize(
    ("environment", "reentrant", "held"),
    [
        ("nemo-automodel==0.4.0 & transformers==5.5.0", True, 0),
        ("nemo-automodel==0.5.0 & transformers==5.8.1", True, 6),
        ("nemo-automodel==0.6.0 & transformers==5.12.1", False, 6),
        ("nemo-automodel==0.7.0 & transformers==5.18.0", False, 6),
    ],
)
def test_checkpointed_by_automodel_the_gradients_are_those_of_the_model_alone(environment, reentrant, held):
    found = trained(environment)
    assert {family: result["error"] for family, result in found.items()} == pytest.approx(
        {"gemma4": 0.0, "gemma3n": 0.0}, abs=1e-4
    )
    assert {result["reentrant"] for result in found.values()} == {reentrant}
    assert found["gemma3n"]["held"] == held


@pytest.mark.parametrize(
    "environment", ["nemo-automodel==0.4.0 & transformers==5.5.0", "nemo-automodel==0.5.0 & transformers==5.8.1"]
)
def test_without_the_patches_they_are_wrong_or_there_are_none(environment):
    for result in trained(environment, NRL_PATCHES="0").values():
        assert isinstance(result["error"], str) or result["error"] > 0.01
