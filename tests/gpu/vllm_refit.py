"""Refit real vLLM engines on GPUs and compare what they generate with a load from disk, without the patches and with.

    python vllm_refit.py list
    python vllm_refit.py models FOLDER
    python vllm_refit.py run FOLDER RESULTS [--gpus 0,1] [--lanes 2] [--budget 500] CASE...

A case is FAMILY-MODE-tpN-WAY, and CASE a pattern of names. MODE is ``eager``, ``graphs`` (CUDA graphs and compiled),
``fp8`` (eager) or ``flash`` (eager, flash attention in place of Triton's). WAY is ``load``, a refit by the model's
``load_weights`` in three batches as NeMo RL does it, ``ipc``, the same with tensors that another process holds on the
GPU, or ``reload``, vLLM's layerwise reload in three batches. ``gemma3_planted`` is Gemma 3 whose normalizer a plugin
makes a persistent buffer, as up to 0.9.1.

For each case an engine loads from disk, and for each side (patched, unpatched) one starts with dummy weights and is
refitted three times: at once, after sleep level 1, and after sleep level 2. Each engine is a program of its own, which
does not import nrl_patches: its front end, core and workers get it from the entry point of the plugin, or, with
NRL_PATCHES=0, not. One JSON object per side: the largest difference of log-probabilities after each refit, whether the
tokens are equal, the patches that the worker applied, what was never written, and whether the side is as expected.
"""

import argparse
import fnmatch
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import vllm_models

TOLD = "vllm_refit: "
LEAST = 20
"""Seconds that must be left for an engine to be started."""

TIMEOUT = 200
"""Seconds for one engine, from the start of its program to the end."""

PLANTED = "gemma3_planted"
VICTIMS = dict.fromkeys((PLANTED, "apertus", "gemma4_parameters", "nano_nemotron_vl"), ("load", "ipc", "reload"))
VICTIMS |= dict.fromkeys(("gemma4", "gemma4_towers", "gpt_oss", "gpt_oss_mxfp4"), ("reload",))
"""The families that are wrong without the patches, with the ways of refitting by which they are."""


def cases():
    """Return the names of all cases."""
    families = (PLANTED, *vllm_models.FAMILIES)
    names = [f"{family}-eager-tp1-{way}" for family in families for way in ("load", "reload")]
    names += [f"{family}-graphs-tp1-load" for family in families]
    names += ["apertus-graphs-tp1-reload", "nano_nemotron_vl-graphs-tp1-reload"]
    names += [f"{family}-eager-tp1-ipc" for family in (PLANTED, "nemotron_h")]
    names += [f"{family}-fp8-tp1-reload" for family in (PLANTED, "gemma3", "apertus", "nemotron_h")]
    names += [f"{family}-eager-tp2-load" for family in families]
    names += [f"{family}-graphs-tp2-load" for family in (PLANTED, "apertus", "nano_nemotron_vl")]
    names += ["apertus-eager-tp2-reload", f"{PLANTED}-fp8-tp2-reload"]
    for family in vllm_models.OTHERS:
        quantized = family.endswith("mxfp4")  # Its weights are stored in another form than they are sent.
        names += [f"{family}-eager-tp{tp}-reload" for tp in (1, 2)]
        names += [f"{family}-graphs-tp1-{'reload' if quantized else 'load'}"]
        names += [] if quantized else [f"{family}-eager-tp1-load"]
    return [*names, *(f"{family}-flash-tp1-reload" for family in (PLANTED, "apertus", "gpt_oss", "qwen3_moe"))]


def parts(case):
    family, mode, tp, way = case.split("-")
    return family, mode, int(tp.removeprefix("tp")), way


# What runs in an engine's worker. Functions of this file are sent by value, so each imports what it needs.


def refit(worker, folder, family, way, handles):
    from pathlib import Path

    import torch
    import vllm_models
    from vllm.config import set_current_vllm_config

    if handles is None:
        device = worker.device if way == "load" else "cpu"
        weights = [(name, weight.to(device)) for name, weight in vllm_models.stream(Path(folder), family)]
    else:
        weights = [(name, rebuild(*args)) for name, rebuild, args in handles]
    size = -(-len(weights) // 3)
    batches = [weights[start : start + size] for start in range(0, len(weights), size)]
    model = worker.model_runner.get_model()
    with torch.inference_mode(), set_current_vllm_config(worker.vllm_config):
        if way == "reload":
            from vllm.model_executor.model_loader import reload

            reload.initialize_layerwise_reload(model)
        for batch in batches:
            model.load_weights(iter(batch))
        if way == "reload":
            reload.finalize_layerwise_reload(model, worker.model_runner.model_config)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def remember(worker):
    from nrl_patches import refit as watch

    return watch.remember(worker)


def observe(worker):
    """Return the patches that are applied here, what no refit has written, and the constants of the model."""
    import os
    import sys

    told = {"pid": os.getpid(), "hooked": False, "applied": [], "constants": {}}
    package = sys.modules.get("nrl_patches")
    if package is not None:
        states = {name: status.state for name, status in package.status().items() if name.startswith("vllm.")}
        told["applied"] = sorted(name for name, state in states.items() if state == "applied")
        told["other"] = {n: s for n, s in states.items() if s not in ("applied", "pending", "not-affected")}
    from nrl_patches import refit as watch

    told["unwritten"] = watch.unwritten(worker)
    model = worker.model_runner.get_model()
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        last = name.rpartition(".")[2]
        if last in ("normalizer", "beta", "eps", "ls1", "ls2") and last not in told["constants"]:
            told["constants"][last] = float(tensor.flatten()[0])
    return told


# What runs in an engine's front end.


def start(folder, family, mode, tp, load_format):
    from vllm import LLM

    options = {}
    if mode == "graphs":
        options["compilation_config"] = {"cudagraph_capture_sizes": [1, 2, 4]}
    if mode == "fp8":
        options["quantization"] = "fp8"
    if family in vllm_models.MEDIA_PROMPTS:
        options["limit_mm_per_prompt"] = {"video": 0} | dict.fromkeys(vllm_models.MEDIA_PROMPTS[family], 1)
        options["mm_encoder_attn_backend"] = "TORCH_SDPA"
    if not os.environ.get("VLLM_REFIT_ON_CPU"):
        backend = "FLASH_ATTN" if mode == "flash" else "TRITON_ATTN"
        options |= {"attention_backend": backend, "enable_sleep_mode": load_format == "dummy"}
    return LLM(
        model=str(folder),
        load_format=load_format,
        skip_tokenizer_init=family not in vllm_models.MEDIA_PROMPTS,
        trust_remote_code=family == "nano_nemotron_vl",
        dtype="bfloat16",
        enforce_eager=mode != "graphs",
        tensor_parallel_size=tp,
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=2560 if "audio" in vllm_models.MEDIA_PROMPTS.get(family, ()) else 512,
        enable_prefix_caching=False,
        gpu_memory_utilization=0.1,
        kv_cache_memory_bytes=2**28,
        seed=0,
        **options,
    )


def generate(engine, family):
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(prompt)} for prompt in vllm_models.PROMPTS]
    for kind, prompt in vllm_models.MEDIA_PROMPTS.get(family, {}).items():
        shown = {"multi_modal_data": {kind: vllm_models.medium(kind)}}
        prompts.append({"prompt_token_ids": prompt} | shown)
    sampling = SamplingParams(temperature=0, max_tokens=16, logprobs=5, ignore_eos=True, detokenize=False)
    told = []
    for prompt in prompts:  # One at a time: how a batch is put together depends on time, and rounding on the batch.
        (request,) = engine.generate([prompt], sampling, use_tqdm=False)
        (output,) = request.outputs
        steps = [{str(token): best.logprob for token, best in step.items()} for step in output.logprobs]
        told.append({"tokens": list(output.token_ids), "logprobs": steps})
    return told


def share(folder, family):
    """Return handles of the stream's tensors on the GPU, and what keeps them alive."""
    from torch.multiprocessing.reductions import reduce_tensor

    weights = [(name, weight.cuda()) for name, weight in vllm_models.stream(folder, family)]
    return [(name, *reduce_tensor(weight)) for name, weight in weights], weights


def run_engine(folder, case, side):
    """Print what one engine generates: the reference once, a refitted one after each refit."""
    family, mode, tp, way = parts(case)
    begin = time.perf_counter()
    import torch

    if mode != "graphs" or family == "nano_nemotron_vl":
        torch._dynamo.config.disable = True  # Here only, where images are resized; a child has its own.
    source = family.removesuffix("_planted")
    engine = start(folder, source, mode, tp, "auto" if side == "reference" else "dummy")
    told = {"start": time.perf_counter() - begin, "outputs": []}
    if side == "reference":
        told["outputs"].append(generate(engine, source))
    else:
        engine.collective_rpc(remember)
        handles, kept = share(folder, source) if way == "ipc" else (None, None)
        asleep = not os.environ.get("VLLM_REFIT_ON_CPU")
        for level in (0, 1, 2):
            if level and asleep:
                engine.sleep(level=level)
                engine.wake_up(tags=["weights"])
            engine.collective_rpc(refit, args=(str(folder), source, way, handles))
            if not level:
                told["worker"] = engine.collective_rpc(observe)
                print(json.dumps(told["worker"]), flush=True)  # Should a later step fail.
            elif asleep:
                engine.wake_up(tags=["kv_cache"])
            told["outputs"].append(generate(engine, source))
        del kept
    told["seconds"] = time.perf_counter() - begin
    told["imported_here"] = "nrl_patches" in sys.modules
    print(f"\n{TOLD}{json.dumps(told)}", flush=True)
    engine.llm_engine.engine_core.shutdown()


# What runs in the program that starts the engines.


def plant(folder):
    """Install, into a folder, a plugin that makes Gemma 3's normalizer a persistent buffer; return the folder."""
    info = folder / "planted-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nplanted = planted:plant\n", encoding="utf-8")
    code = Path(__file__).with_name("vllm_planted.py").read_text(encoding="utf-8")
    (folder / "planted.py").write_text(code, encoding="utf-8")
    return folder


def command(folder, case, side):
    family = parts(case)[0]
    environ = os.environ | {
        "NRL_PATCHES": "0" if side == "unpatched" else "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_DEEP_GEMM": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if family == PLANTED:
        planted = plant(folder / "planted")
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(planted), environ.get("PYTHONPATH"))))
    return [sys.executable, __file__, "engine", str(folder / family.removesuffix("_planted")), case, side], environ


def execute(folder, case, side, gpus, logs, seconds):
    """Return what an engine told, or its error; nothing of it outlives the call."""
    line, environ = command(folder, case, side)
    log = logs / f"{case}.{side}.log"
    with log.open("w", encoding="utf-8") as stream:
        environ["CUDA_VISIBLE_DEVICES"] = gpus
        process = subprocess.Popen(line, env=environ, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            stream.write(f"\nstopped after {seconds} s\n")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    found = [one for one in text.splitlines() if one.startswith(TOLD)]
    if found:
        return json.loads(found[0].removeprefix(TOLD))
    errors = [one for one in text.splitlines() if "Error" in one]
    return {"error": (errors or text.splitlines() or ["nothing was printed"])[-1][-300:]}


def difference(found, expected):
    """Return the largest difference of log-probabilities up to the first other token, and whether tokens are equal."""
    largest, equal = 0.0, True
    for one, other in zip(found, expected, strict=True):
        equal = equal and one["tokens"] == other["tokens"]
        for step, (here, there) in enumerate(zip(one["logprobs"], other["logprobs"], strict=True)):
            common = here.keys() & there.keys()
            steps = [abs(here[token] - there[token]) for token in common] or [math.inf]
            largest = max(largest, *(math.inf if math.isnan(value) else value for value in steps))
            if one["tokens"][step] != other["tokens"][step]:
                break
    return largest, equal


def judge(case, side, told, reference):
    """Return the line of one side of a case."""
    line = {"case": case, "side": side}
    if "error" in told or "error" in reference:
        return line | {"as_expected": False, "error": told.get("error"), "reference": reference.get("error")}
    differences = [difference(output, reference["outputs"][0]) for output in told["outputs"]]
    wrong = [largest > 0 or not equal for largest, equal in differences]
    family, _, _, way = parts(case)
    expected = side == "unpatched" and way in VICTIMS.get(family, ())
    workers = told["worker"]
    return line | {
        "as_expected": all(one == expected for one in wrong),
        "max_logprob_difference": [largest if math.isfinite(largest) else "inf" for largest, _ in differences],
        "tokens_equal": [equal for _, equal in differences],
        "start": round(told["start"], 1),
        "seconds": round(told["seconds"], 1),
        "applied": workers[0]["applied"],
        "other": workers[0].get("other"),
        "constants": workers[0]["constants"],
        "unwritten": [len(workers[0]["unwritten"]), *workers[0]["unwritten"][:3]],
        "workers": len({worker["pid"] for worker in workers}),
        "imported_in_script": told["imported_here"],
    }


def reference_of(case):
    return case.rpartition("-")[0]


class Lanes:
    """Lends GPUs to engines, so many engines to each GPU."""

    def __init__(self, gpus, lanes):
        self._free = dict.fromkeys(gpus, lanes)
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, count):
        with self._changed:
            self._changed.wait_for(lambda: sum(map(bool, self._free.values())) >= count)
            gpus = sorted(self._free, key=lambda gpu: -self._free[gpu])[:count]
            for gpu in gpus:
                self._free[gpu] -= 1
        try:
            yield sorted(gpus)
        finally:
            with self._changed:
                for gpu in gpus:
                    self._free[gpu] += 1
                self._changed.notify_all()


class Session:
    """The runs of one call: each reference once, kept in the folder of the models for later calls."""

    def __init__(self, options):
        self.folder, self.results = Path(options.folder), Path(options.results)
        self.deadline = time.monotonic() + options.budget
        self.results.mkdir(parents=True, exist_ok=True)
        self._kept = self.folder / "told"
        self._kept.mkdir(exist_ok=True)
        self._lanes = Lanes(options.gpus.split(","), options.lanes)
        self._writing = threading.Lock()

    def engine(self, case, side):
        with self._lanes.taken(parts(case)[2]) as gpus:
            left = self.deadline - time.monotonic()
            if left < LEAST:
                return {"error": "not started: no time left"}
            return execute(self.folder, case, side, ",".join(gpus), self.results, min(TIMEOUT, left))

    def make_reference(self, case):
        kept = self._kept / f"{reference_of(case)}.json"
        if not kept.exists():
            told = self.engine(case, "reference")
            if "error" in told:
                return told
            kept.write_text(json.dumps(told), encoding="utf-8")
        return json.loads(kept.read_text(encoding="utf-8"))

    def one(self, case, side, expected):
        told = {} if "error" in expected else self.engine(case, side)
        line = json.dumps(judge(case, side, told, expected))
        with self._writing, (self.results / "vllm_refit.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            print(line, flush=True)


def run(options):
    """Run the chosen cases, the references first; print and append a line per side."""
    names = [name for name in cases() if any(fnmatch.fnmatch(name, pattern) for pattern in options.cases)]
    count = len(options.gpus.split(","))
    impossible = [case for case in names if parts(case)[2] > count]
    assert not impossible, impossible
    session = Session(options)
    with ThreadPoolExecutor(options.lanes * count) as pool:
        first = {reference_of(case): case for case in names}
        references = dict(zip(first, pool.map(session.make_reference, first.values()), strict=True))
        todo = [(case, side, references[reference_of(case)]) for case in names for side in ("patched", "unpatched")]
        list(pool.map(lambda each: session.one(*each), todo))
    print(json.dumps({"sides": len(todo), "seconds left": round(session.deadline - time.monotonic())}))


def make_models(folder):
    import shutil

    for family in (*vllm_models.FAMILIES, *vllm_models.OTHERS):
        if not (folder / family / "config.json").exists():
            shutil.rmtree(folder / family, ignore_errors=True)
            vllm_models.make(family, folder / family)
            print("made", family, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    commands.add_parser("models").add_argument("folder")
    running = commands.add_parser("run")
    for name in ("folder", "results"):
        running.add_argument(name)
    running.add_argument("cases", nargs="+")
    running.add_argument("--gpus", default="0")
    running.add_argument("--lanes", type=int, default=2, help="engines at a time on one GPU")
    running.add_argument("--budget", type=float, default=540, help="seconds after which no engine is started")
    engine = commands.add_parser("engine")
    for name in ("folder", "case", "side"):
        engine.add_argument(name)
    options = parser.parse_args()
    if options.command == "list":
        print(*cases(), sep="\n")
    elif options.command == "models":
        make_models(Path(options.folder))
    elif options.command == "engine":
        run_engine(Path(options.folder), options.case, options.side)
    else:
        run(options)


if __name__ == "__main__":
    main()
