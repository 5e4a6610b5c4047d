"""What the patches cost at the start of a vLLM engine: pairs of starts, with the package and without, in one run.

    pip install --no-deps --target FOLDER nrl-patches
    python tests/benchmarks/engine_start.py MODEL FOLDER [PAIRS]

MODEL is a folder with a configuration; weights are not read. FOLDER has nothing but this package, and is on the path of
one side only: the program that is started does not import it, so its front end, EngineCore and workers get it from the
entry point of vLLM's plugins. The interpreter must find no other copy.

A start is timed from the creation of its process to the first token, and its CPU time is that of all its processes.
Within a pair the order changes from one to the next. One start of each side goes before, for caches and bytecode.

ENGINE_START_ARGUMENTS has more arguments of `vllm.LLM` as JSON. On a GPU, give `{"kv_cache_memory_bytes": 268435456}`:
a cache as large as memory allows differs from start to start, and with its size which kernels Triton has to compile.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BAR = 1.01
TOLD = "engine_start: "
"""How the line begins that is for us: an engine prints what it likes, before and after."""


def start(model: str) -> None:
    """Start an engine, generate one token, and tell when that was and which patches the process has."""
    from vllm import LLM, SamplingParams

    given = json.loads(os.environ.get("ENGINE_START_ARGUMENTS", "{}"))
    fixed = {"load_format": "dummy", "enforce_eager": True, "max_model_len": 64, "max_num_seqs": 1}
    engine = LLM(model, skip_tokenizer_init=True, **fixed | given)
    prompt = {"prompt_token_ids": [3, 5, 9]}
    engine.generate([prompt], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    ready = time.time()
    package = sys.modules.get("nrl_patches")
    states = package.status().values() if package else ()
    told = {"ready": ready, "there": bool(package), "applied": sum(state.state == "applied" for state in states)}
    print(f"\n{TOLD}{json.dumps(told)}", flush=True)
    engine.llm_engine.engine_core.shutdown()


def measure(model: str, folder: str | None) -> tuple[float, float, int]:
    """Return the seconds of one start, its CPU seconds, and how many patches its front end had applied."""
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    environ = {"VLLM_LOGGING_LEVEL": "ERROR"} | os.environ | {"PYTHONPATH": path}
    used, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    command = [sys.executable, __file__, "--start", model]
    done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, text=True)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(TOLD))
    told = json.loads(line.removeprefix(TOLD))
    assert told["there"] == bool(folder), told
    return told["ready"] - begin, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, told["applied"]


def main() -> None:
    """Print each pair and the medians of the ratios."""
    if sys.argv[1] == "--start":
        start(sys.argv[2])
        return
    model, folder = sys.argv[1], str(Path(sys.argv[2]).resolve())
    for side in (folder, None):
        measure(model, side)
    seconds, cpu = [], []
    for index in range(int(sys.argv[3]) if len(sys.argv) > 3 else 5):
        order = (folder, None) if index % 2 else (None, folder)
        found = {side: measure(model, side) for side in order}
        (with_it, cpu_with, applied), (without, cpu_without, _) = found[folder], found[None]
        seconds.append(with_it / without)
        cpu.append(cpu_with / cpu_without)
        print(
            f"with {with_it:.2f} s ({applied} patches applied in the front end), without {without:.2f} s: "
            f"{seconds[-1]:.4f}; CPU time {cpu_with:.2f} and {cpu_without:.2f} s: {cpu[-1]:.4f}",
            flush=True,
        )
    ratio = statistics.median(seconds)
    print(f"median of the ratios {ratio:.4f}, of CPU time {statistics.median(cpu):.4f}; the bar is {BAR}")
    sys.exit(int(ratio > BAR))


if __name__ == "__main__":
    main()
