"""A short prefill replays a decode graph: Gated DeltaNet hybrids then compute NaN or garbage under speculation.

Problem: `GPUModelRunner._is_uniform_decode` (v1/worker/gpu_model_runner.py) tells decoding from prefill by the number
    of tokens only. A prefill step, or the last chunk of one, of exactly `1 + num_speculative_tokens` tokens per request
    therefore replays the CUDA graph that was captured for verifying drafts, while the Gated DeltaNet layers have
    prepared their metadata for a prefill and left the graph's buffers as the previous step filled them. The recurrent
    state is not written, or another request's is read.
Hit by: Qwen3-Next and Qwen 3.5 to 3.8 with speculative decoding and CUDA graphs. With prefix caching on, the cache mode
    `align` cuts prefills at block boundaries, which makes such a chunk likely, and keeps the broken state: all logits
    are NaN from the first step, and so again for every later request that hits the prefix. `ngram` drafts were reported
    with 0.28.0, other methods with 0.25.1 to 0.27.1.
Advice: upgrade to 0.32.0 and keep the V2 model runner, which asks the requests; otherwise turn off one of speculative
    decoding, full CUDA graphs (`cudagraph_mode="PIECEWISE"`) and, against the lasting form, prefix caching.
Remove when: the V1 model runner asks the requests too, or is gone, in every supported release. 0.33.0, the newest that
    was measured, has neither; the fix, vLLM pull request 47123, was not merged.

The V2 runner of 0.29.0 and later is right (read, not measured). It is the default for these models from 0.29.0 on, but
not with `ngram` drafts before 0.32.0, nor with `suffix` drafts up to 0.33.0. Older releases have the same test (read),
inline and out of a probe's reach before 0.14.0, but no `align` mode: the range begins where prefix caching can meet it.
The NaN itself needs a GPU and was not measured here.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

from nrl_patches import Defect, Observation

defect = Defect(
    __name__,
    affected="vllm>=0.15.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/issues/55766",
        "https://github.com/vllm-project/vllm/issues/49918",
        "https://github.com/vllm-project/vllm/pull/47123",
    ),
    advice="Use vLLM 0.32.0 or later with its V2 model runner, or do not combine speculative decoding with CUDA graphs "
    "for Gated DeltaNet hybrids such as Qwen 3.5.",
    relies_on=("vllm.v1.worker.gpu_model_runner:GPUModelRunner._is_uniform_decode",),
    victims={
        "Qwen3-Next and Qwen 3.5 to 3.8 with ngram drafts": "vllm>=0.15.0,<0.32.0",
        "Qwen3-Next and Qwen 3.5 to 3.8 with MTP or other drafts": "vllm>=0.15.0,<0.29.0",
    },
)

_DRAFTS = 5


@defect.probe
def prefill_counts_as_decode() -> Observation:
    """Ask the V1 runner about one request that prefills as many tokens as a verification of drafts has.

    It cannot be told that this is a prefill: the numbers are all that it takes.
    """
    from vllm.config import CacheConfig

    fields = getattr(CacheConfig, "__dataclass_fields__", {})
    if "mamba_cache_mode" not in fields:
        return Observation(present=False, evidence={"absent": "CacheConfig.mamba_cache_mode"})
    if find_spec("diskcache") is None:  # For structured output only; the runner's module imports it in old releases.
        sys.modules["diskcache"] = ModuleType("diskcache")
        sys.modules["diskcache"].Cache = object  # type: ignore[attr-defined]
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    tokens = 1 + _DRAFTS
    answer = GPUModelRunner._is_uniform_decode(
        max_num_scheduled_tokens=tokens, uniform_decode_query_len=tokens, num_tokens=tokens, num_reqs=1
    )
    return Observation(bool(answer), {"tokens": tokens, "uniform_decode": bool(answer)})
