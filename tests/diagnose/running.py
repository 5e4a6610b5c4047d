"""Runs the command on the real vLLM, on the CPU, and the real transformers; shared by the tests of this folder."""

import json
import os
import subprocess
import sys
import sysconfig

from patches.vllm.environment import ENVIRONMENTS
from releases import BYTECODE, FOLDER, ROOT, build_part, run_in

from nrl_patches.matrix.environments import variables

HERE = ROOT / "tests" / "diagnose"
ENGINE = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CACHE_ROOT": str(FOLDER / "vllm-cache"),
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}


def path():
    """The folders with vLLM's CPU build and what it requires."""
    return [build_part(part, FOLDER) for part in ENVIRONMENTS["0.30.0"]]


def build(folder, *faults, size="tiny"):
    run_in([*path(), ROOT / "tests"], HERE / "build_model.py", folder, size, *faults)
    return folder


def run(model, output, *options):
    """Run the command; return its exit code, what it wrote, and the process.

    The trainer's interpreter is the one below the tests' own: with the same packages on its path, except for this one,
    which is installed by a file that only the tests' own reads.
    """
    folders = [*path(), sysconfig.get_path("purelib")]
    environ = variables(folders, os.environ) | BYTECODE | ENGINE | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-P", "-m", "nrl_patches", "diagnose", str(model), "--output", str(output)]
    command += ["--trainer-python", sys._base_executable, "--dtype", "float32"]
    command += ["--engine-arg", "block_size=16", "--engine-arg", "enforce_eager=true", *map(str, options)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode in {0, 1, 3}, done.stderr[-3000:]
    return done.returncode, json.loads((output / "results.json").read_text(encoding="utf-8")), done


def only(*names):
    return [word for name in names for word in ("--only", name)]


def findings(report, state):
    return {(f["diagnostic"], f["case"]): f for f in report["findings"] if f["state"] == state}
