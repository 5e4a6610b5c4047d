"""Run jobs on a real local Ray cluster, ask their workers, and print what they say.

    python jobs.py JOB...

with JOB one of ``tasks``, ``refused``, ``nested`` and ``engine``.

Each job is a driver of its own in the eyes of Ray. The cluster is older than all of them, so what a worker knows of its
driver's environment has come through the runtime environment.
"""

import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TMPDIR": tempfile.gettempdir(),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Loopback only.
    "RAY_worker_niceness": "0",  # With Ray's 15, workers starve between other tests.
}

import ray
from processes.vllm import checkpoint, engine
from processes.vllm.observed import PATCH, add_told, observe
from ray.cluster_utils import Cluster

import nrl_patches
from nrl_patches.ray import runtime_env

OFF = {"env_vars": {"NRL_PATCHES": "0"}}


@ray.remote(max_retries=0)
def probe():
    return observe()


@ray.remote(max_retries=0)
def look():
    """Tell what is known without importing anything."""
    activated = sys.modules.get("nrl_patches")
    try:
        status = str(activated.status()[PATCH]) if activated else "nrl_patches is not imported"
    except ImportError as error:  # The worker has the package, and not what its engine needs.
        status = f"cannot be loaded: {error}"
    failure = getattr(sys.modules.get("nrl_patches_hosts.door"), "failure", None)
    return {"status": status, "mine": os.environ.get("MINE"), "failure": failure}


@ray.remote(max_restarts=0)
class Prober:
    def observe(self):
        return observe()


@ray.remote(max_restarts=0)
class Starter:
    """A worker with a child that calls ``ray.init``."""

    def start(self, *, bare):
        env = None if bare else ray.get_runtime_context().runtime_env
        script = Path(__file__).with_name("second_driver.py")
        done = subprocess.run([sys.executable, script], input=pickle.dumps(env), capture_output=True, check=False)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr.decode()[-2000:]


@ray.remote(max_restarts=0)
class Engine:
    def ask(self):
        from processes.vllm.executor import Executor

        with tempfile.TemporaryDirectory() as folder:
            llm = engine.start(checkpoint.make(Path(folder)), distributed_executor_backend=Executor)
        told = engine.ask(llm)
        llm.llm_engine.engine_core.shutdown()
        return told


@contextmanager
def job(cluster, base=None, *, helped=True, **environ):
    """Be the driver of one job, under these environment variables."""
    os.environ |= environ
    try:
        env = runtime_env(base) if helped else base
    finally:
        for name in environ:
            del os.environ[name]
    ray.init(address=cluster.address, runtime_env=env, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def get(reference):
    return ray.get(reference, timeout=300)


def tasks(cluster):
    found = {}
    with job(cluster, {"env_vars": {"MINE": "kept"}}):
        actor = Prober.remote()
        parts = {"task": [get(probe.remote())], "actor": [get(actor.observe.remote())]}
        found |= add_told(parts)
        found["off by the task"] = get(probe.options(runtime_env=OFF).remote())
        found["mine"] = get(look.remote())
    with job(cluster, NRL_PATCHES_DISABLE=PATCH):
        found["off by the driver"] = get(look.remote())
    with job(cluster, {"env_vars": {"NRL_PATCHES_DISABLE": "nemo_automodel.*"}}, NRL_PATCHES_DISABLE=PATCH):
        found["base wins"] = get(look.remote())
    with job(cluster, {"worker_process_setup_hook": "processes.ray.own_hook.hook"}, NRL_PATCHES_DISABLE=PATCH):
        found["own hook"] = get(look.remote())
    with job(cluster, helped=False):
        found["without the helper"] = get(look.remote())
    return found


def refused(cluster):
    """Start workers that cannot import nrl_patches, or are told nonsense, without and with strict mode."""
    found = {}
    broken = {"env_vars": {"PYTHONPATH": os.pathsep.join([os.environ["BROKEN"], os.environ["PYTHONPATH"]])}}
    for name, base, environ in (("broken", broken, {}), ("typo", {}, {"NRL_PATCHES_DISABLE": "vllm.dummy_load"})):
        with job(cluster, base, **environ):
            found[name] = get(look.remote())
        with job(cluster, base, NRL_PATCHES_STRICT="1", **environ):
            try:
                get(Prober.remote().observe.remote())
            except ray.exceptions.ActorDiedError as error:
                found[f"{name}, strict"] = str(error)
    return found


def nested(cluster):
    """Start jobs from a worker, and workers in an environment that lacks the package."""
    absent = os.pathsep.join([str(Path(__file__).with_name("absent")), os.environ["PYTHONPATH"]])
    found = {}
    with job(cluster):
        found["worker"] = get(look.remote())
        starter = Starter.remote()
        found["second job"] = get(starter.start.remote(bare=False))
        found["second job, bare"] = get(starter.start.remote(bare=True))
        elsewhere = {"env_vars": {"PYTHONPATH": absent}}
        found["elsewhere"] = get(look.options(runtime_env=elsewhere).remote())
        elsewhere = {"env_vars": {"PYTHONPATH": absent, "NRL_PATCHES_STRICT": "1"}}
        try:
            get(Prober.options(runtime_env=elsewhere).remote().observe.remote())
        except ray.exceptions.ActorDiedError as error:
            found["elsewhere, strict"] = str(error)
    return found


def with_engine(cluster):
    with job(cluster):
        return get(Engine.remote().ask.remote())


JOBS = {"tasks": tasks, "refused": refused, "nested": nested, "engine": with_engine}


def main():
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    try:
        found = {name: JOBS[name](cluster) for name in sys.argv[1:]}
    finally:
        cluster.shutdown()
    print(json.dumps(found | {"driver": nrl_patches.activated_by}))


if __name__ == "__main__":
    main()
