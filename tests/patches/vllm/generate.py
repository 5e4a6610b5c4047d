"""Generate with the real ``vllm.LLM``: loaded from disk, and started with dummy weights and refitted.

    python generate.py gemma3|qwen2_5_vl

Prints tokens and the log-probabilities of the five best at each step, for the load from disk and for both sides, and
what the refit left unwritten. The
engine's core runs in this process, so that functions can be sent to its worker and patches be undone. Gemma's constant
has not been persistent since 0.9.2, whose predecessors can't generate here; so here it is made persistent again.
"""

import gc
import json
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

import tiny
import torch._dynamo

import nrl_patches
from nrl_patches import refit as watch


def image():
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.arange(56 * 56 * 3).reshape(56, 56, 3) * 7 % 256).astype("uint8"))


def make_normalizer_persistent():
    from vllm.model_executor.models.gemma3 import Gemma3Model

    init = Gemma3Model.__init__

    def init_as_before(self, **kwargs):
        init(self, **kwargs)
        self._non_persistent_buffers_set.remove("normalizer")

    Gemma3Model.__init__ = init_as_before


def refit(worker, batches):
    model = worker.model_runner.get_model()
    for batch in batches:
        model.load_weights(iter(batch))


def generate(folder, load_format, batches=()):
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    with_image = folder.name.startswith("qwen")
    engine = LLM(
        model=str(folder),
        load_format=load_format,
        skip_tokenizer_init=not with_image,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=1,
        max_num_batched_tokens=128,
        enable_prefix_caching=False,
        seed=0,
        **({"limit_mm_per_prompt": {"image": 1, "video": 0}} if with_image else {}),
    )
    engine.collective_rpc(watch.remember)
    engine.collective_rpc(refit, args=(batches,))
    (unwritten,) = engine.collective_rpc(watch.unwritten)
    prompt = {"prompt_token_ids": [3, 5, 9, 11, 20]}
    if with_image:
        prompt = {"prompt_token_ids": [3, 502, 505, 503, 9, 11, 20], "multi_modal_data": {"image": image()}}
    sampling = SamplingParams(temperature=0, max_tokens=8, logprobs=5, ignore_eos=True, detokenize=False)
    (request,) = engine.generate([prompt], sampling, use_tqdm=False)
    engine.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    (output,) = request.outputs
    return {
        "tokens": list(output.token_ids),
        "unwritten": unwritten,
        "logprobs": [{str(token): best.logprob for token, best in step.items()} for step in output.logprobs],
    }


def main():
    (family,) = sys.argv[1:]
    tiny.prepare()
    folder = tiny.make(family, Path(tempfile.mkdtemp()) / family)
    if family == "gemma3":
        make_normalizer_persistent()
    # vLLM compiles what counts ranks, and collects garbage again and again; neither is what is tested.
    torch._dynamo.config.disable = True
    from vllm import LLM  # noqa: F401 - the collector is to pass over it

    gc.freeze()
    report = {"auto": generate(folder, "auto")}
    applied = [patch for patch, status in nrl_patches.status().items() if status.state == "applied"]
    for side in ("on", "off"):
        with nrl_patches.undo(*applied) if side == "off" else nullcontext():
            report[side] = generate(folder, "dummy", tiny.batches(folder, 3))
    print(json.dumps(report | {"applied": applied}))


if __name__ == "__main__":
    main()
