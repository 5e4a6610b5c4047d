"""Two ranks of torchrun train one step with FSDP2; what KV-shared layers need is in each of them."""

import sys
from pathlib import Path

import pytest
from releases import results, run_on
from standins import ROOT

TRAIN = Path(__file__).parent / "torchrun_train.py"
RUN = (ROOT / "tests" / "run_command.py", "run", "--", sys.executable)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TRAIN)

pytestmark = pytest.mark.xdist_group("transformers==5.6.0")


def train(*command, **environ):
    return results(run_on("transformers==5.6.0", *command, fresh=True, **environ))


@pytest.mark.parametrize(
    ("command", "path"),
    [((*TORCHRUN, "gemma4", "import"), "import"), ((*RUN, *TORCHRUN, "gemma3n"), "startup")],
    ids=["the program imports us", "nrl-patches run"],
)
def test_one_step_is_that_of_one_process(command, path):
    ranks = train(*command)
    for rank in ranks:
        assert rank == {
            "activated_by": path,
            "present": False,
            "state": "applied",
            "gradients": pytest.approx(0, abs=1e-6),
            "parameters": pytest.approx(0, abs=1e-6),
        }
    assert len(ranks) == 2


def test_without_the_patch_every_rank_fails():
    ranks = train(*TORCHRUN, "gemma4", "import", NRL_PATCHES="0")
    assert [(rank["present"], rank["error"][:8]) for rank in ranks] == [(True, "KeyError")] * 2
