"""Tasks and actors of real Ray on this machine, and an engine of the real vLLM in an actor."""

import functools

import pytest
from processes.vllm.running import ACME, BROKEN, check_contributed, check_patched, start
from releases import FOLDER, results
from standins import ROOT

from nrl_patches.matrix.environments import Part, build_part

NEWEST = "2.60.0"
OLDER = ("2.49.2", "2.54.1")
"""The oldest that is promised, and the last that refuses a setup hook which it has already turned into a variable."""

UNIMPORTED = "nrl_patches is not imported"

pytestmark = pytest.mark.xdist_group("engines")


@functools.cache
def jobs(*names, version=NEWEST):
    # In front of vLLM's environment, which has everything else that Ray needs.
    ray = Part((f"ray=={version}", "msgpack==1.2.4"))
    script = ROOT / "tests" / "processes" / "ray" / "jobs.py"
    return results(start(script, *names, overlay=[build_part(ray, FOLDER), ACME], BROKEN=str(BROKEN)))


def together():
    """One cluster for all that need no engine."""
    return jobs("tasks", "refused", "nested")


def test_tasks_and_actors_are_patched_as_the_driver_says():
    assert together()["driver"] == "import"
    seen = together()["tasks"]
    for part in ("task", "actor"):
        (process,) = seen[part]
        check_patched(process, "ray")
        check_contributed(process)
    assert seen["task"][0]["pid"] != seen["actor"][0]["pid"]
    assert seen["mine"]["mine"] == "kept"
    # A task may leave the others; the defect is there then.
    assert seen["off by the task"]["present"] is True
    assert ": disabled (named in NRL_PATCHES_DISABLE)" in seen["off by the driver"]["status"]
    assert ": pending (" in seen["base wins"]["status"]
    assert ": disabled (named in NRL_PATCHES_DISABLE)" in seen["own hook"]["status"]
    assert seen["own hook"]["mine"] == "by my hook"
    assert seen["without the helper"]["status"] == UNIMPORTED


def test_a_worker_that_cannot_be_patched_runs_but_not_under_strict():
    seen = together()["refused"]
    assert seen["broken"]["status"].startswith("cannot be loaded: import of wrapt halted")
    assert ": pending (" in seen["typo"]["status"]
    assert "Failed to execute the setup hook method, nrl_patches_hosts.ray.worker" in seen["broken, strict"]
    assert "import of wrapt halted" in seen["broken, strict"]
    assert "NRL_PATCHES_DISABLE: expected the id of a patch; found 'vllm.dummy_load'" in seen["typo, strict"]


@pytest.mark.parametrize("version", [*OLDER, NEWEST])
def test_a_worker_may_hand_its_environment_to_a_job_of_its_own_and_start_where_the_package_is_missing(version):
    seen = (together() if version == NEWEST else jobs("nested", version=version))["nested"]
    assert ": pending (" in seen["worker"]["status"]
    assert seen["second job"] == "ray"
    assert seen["second job, bare"] is None  # It was asked for nothing.
    assert seen["elsewhere"]["status"] == UNIMPORTED
    assert seen["elsewhere"]["failure"].endswith("ModuleNotFoundError: No module named 'nrl_patches'\n")
    assert "ModuleNotFoundError: No module named 'nrl_patches'\n" in seen["elsewhere, strict"]


def test_an_engine_in_an_actor_is_patched():
    seen = jobs("engine")["engine"]
    for part, path in {"front end": "ray", "core": "multiprocessing", "worker": "multiprocessing"}.items():
        (process,) = seen[part]
        check_patched(process, path)
    assert len({seen[part][0]["pid"] for part in ("front end", "core", "worker")}) == 3
