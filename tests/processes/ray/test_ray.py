"""Tasks and actors of real Ray on this machine, and an engine of the real vLLM in an actor."""

import pytest
from processes.vllm.running import BROKEN, check_patched, start
from releases import FOLDER, results
from standins import ROOT

from nrl_patches.matrix.environments import Part, build_part

RAY = Part(("ray==2.60.0", "msgpack==1.2.4"))
"""In front of vLLM's environment, which has everything else that Ray needs."""

pytestmark = pytest.mark.xdist_group("engines")


def jobs(what):
    script = ROOT / "tests" / "processes" / "ray" / "jobs.py"
    return results(start(script, what, overlay=build_part(RAY, FOLDER), BROKEN=str(BROKEN)))


def test_tasks_and_actors_are_patched_as_the_driver_says():
    seen = jobs("tasks")
    assert seen["driver"] == "import"
    for part in ("task", "actor"):
        (process,) = seen[part]
        check_patched(process, "ray")
    assert seen["task"][0]["pid"] != seen["actor"][0]["pid"]
    assert seen["mine"]["mine"] == "kept"
    # A task may leave the others; the defect is there then.
    assert seen["off by the task"]["present"] is True
    assert ": disabled (named in NRL_PATCHES_DISABLE)" in seen["off by the driver"]["status"]
    assert ": pending (" in seen["base wins"]["status"]
    assert ": disabled (named in NRL_PATCHES_DISABLE)" in seen["own hook"]["status"]
    assert seen["own hook"]["mine"] == "by my hook"
    assert seen["without the helper"]["status"] == "nrl_patches is not imported"


def test_a_worker_that_cannot_be_patched_runs_but_not_under_strict():
    seen = jobs("refused")
    assert seen["broken"]["status"] == "nrl_patches is not imported"
    assert ": pending (" in seen["typo"]["status"]
    assert "Failed to execute the setup hook method, nrl_patches_startup.ray_worker" in seen["broken, strict"]
    assert "import of wrapt halted" in seen["broken, strict"]
    assert "NRL_PATCHES_DISABLE: expected the id of a patch; found 'vllm.dummy_load'" in seen["typo, strict"]


def test_an_engine_in_an_actor_is_patched():
    seen = jobs("engine")
    for part, path in {"front end": "ray", "core": "multiprocessing", "worker": "multiprocessing"}.items():
        (process,) = seen[part]
        check_patched(process, path)
    assert len({seen[part][0]["pid"] for part in ("front end", "core", "worker")}) == 3
