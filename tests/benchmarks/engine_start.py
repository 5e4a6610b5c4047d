"""What the patches cost at the start of a vLLM engine, in one run: their own time over that of the whole start.

    python tests/benchmarks/engine_start.py MODEL [ROUNDS]

Starts of an engine differ by far more than the patches take, so the difference of two starts tells nothing. Instead a
clock in each process of the engine (front end, EngineCore, worker) measures the import of nrl_patches and the
application of each patch. What nrl_patches imports and an engine without it imports too (the standard library, mostly)
is imported before the clock starts: the engine pays for it in any case. MODEL is a folder with a configuration; weights
are not read.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BAR = 0.01

CLOCK = """
import importlib, multiprocessing, os, pathlib, sys, time
from importlib.machinery import PathFinder

spent = {"import": 0.0, "later": 0.0}

def timed(kind, function):
    def call(*args):
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent[kind] += time.perf_counter() - start
            name = multiprocessing.current_process().name  # A child gets its own only after its first import of ours.
            told = f"{name} {spent['import']} {spent['later']}"
            pathlib.Path(os.environ["CLOCKS"], str(os.getpid())).write_text(told)
    return call

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "nrl_patches":
            return None
        sys.meta_path.remove(self)
        for other in os.environ["IMPORTED_ANYWAY"].split():
            importlib.import_module(other)
        spec = PathFinder.find_spec(name, path)
        execute = timed("import", spec.loader.exec_module)
        def execute_and_watch(module):
            execute(module)
            activation = sys.modules["nrl_patches.engine.activation"].Activation
            activation.on_executed = timed("later", activation.on_executed)
        spec.loader.exec_module = execute_and_watch
        return spec

sys.meta_path.insert(0, Finder())
"""
"""Runs as sitecustomize in every process: the children import nrl_patches before any other code of ours could run."""


TOLD = "engine_start: "
"""How the line begins that is for us: an engine prints what it likes, before and after."""


def start(model: str) -> None:
    """Print what is imported after one start, and its seconds, from the import of vLLM on."""
    begin = time.perf_counter()
    from vllm import LLM

    engine = LLM(model, load_format="dummy", dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=1)
    told = {"seconds": time.perf_counter() - begin, "modules": sorted(sys.modules)}
    print(f"\n{TOLD}{json.dumps(told)}", flush=True)
    engine.llm_engine.engine_core.shutdown()


def run(*command: str, **environ: str) -> Any:
    """Return what a Python command tells us."""
    environ = {"VLLM_LOGGING_LEVEL": "ERROR"} | environ
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | environ, check=True, stdout=subprocess.PIPE, text=True
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(TOLD))
    return json.loads(line.removeprefix(TOLD))


def imported_anyway(model: str) -> str:
    """Return the modules that nrl_patches imports and that an engine without it imports as well."""
    alone = f"import sys, json, nrl_patches; print({TOLD!r} + json.dumps(list(sys.modules)))"
    needed = set(run("-c", alone))
    there = set(run(__file__, "--start", model, NRL_PATCHES="0")["modules"])
    assert "nrl_patches" not in there
    print("charged beside our own:", *(m for m in sorted(needed - there) if not m.startswith(("nrl_", "_nrl_"))))
    return " ".join(sorted(needed & there - {"__main__"}))


def measure(model: str, anyway: str) -> tuple[float, dict[str, tuple[float, float]]]:
    """Return the seconds of one start, and of the import and what came later in each process."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(CLOCK, encoding="utf-8")
        clocks = Path(folder, "clocks")
        clocks.mkdir()
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        environ = {"PYTHONPATH": path, "CLOCKS": str(clocks), "IMPORTED_ANYWAY": anyway}
        told = run(__file__, "--start", model, **environ)
        spent = {}
        for clock in clocks.iterdir():
            name, imported, later = clock.read_text(encoding="utf-8").split()
            spent[f"{name} {clock.name}"] = float(imported), float(later)
    return told["seconds"], spent


def main() -> None:
    """Print the parts of each round, and the median ratio."""
    if sys.argv[1] == "--start":
        start(sys.argv[2])
        return
    ratios = []
    anyway = imported_anyway(sys.argv[1])
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3):
        whole, spent = measure(sys.argv[1], anyway)
        ratios.append(sum(map(sum, spent.values())) / whole)
        parts = {name: f"{1000 * first:.0f} + {1000 * later:.0f} ms" for name, (first, later) in spent.items()}
        print(f"start {whole:5.1f} s; import and what came later: {json.dumps(parts)}; ratio {ratios[-1]:.4f}")
    print(f"own time / engine start  {statistics.median(ratios):.4f}; the bar is {BAR}")
    sys.exit(int(statistics.median(ratios) > BAR))


if __name__ == "__main__":
    main()
