"""Prefix caching turns the log-probabilities of Nemotron's Mamba hybrids to NaN.

Problem: with several groups of Mamba layers, the first group's metadata builder computes which cache blocks a decode
    step reads and writes, and the others take that over in `BaseMambaAttentionMetadataBuilder.update_block_table`
    (v1/attention/backends/mamba_attn.py). It refreshes the block table that a captured CUDA graph reads, but not the
    two block indices beside it: the graph replays with stale ones, and the recurrent state is garbage.
Hit by: Nemotron-H and Nemotron 3 Nano with `enable_prefix_caching=True` and CUDA graphs (from 0.15.0 on, the cache mode
    `all`). The second turn of a conversation samples token 0 with the log-probability NaN from its second token on.
    NeMo RL's guide for new models reproduces it with 0.14.0 on two GPUs.
Advice: upgrade to 0.17.0; before that, pass `enable_prefix_caching=False`, or `enforce_eager=True`, which replays no
    graph.
Remove when: no supported release is older than vLLM 0.17.0.

The probe runs the real builder on the CPU and looks at the buffers that a graph would read. The NaN itself needs a GPU
and was not measured here. Another way to NaN after a prefix-cache hit, in Gated DeltaNet hybrids under speculative
decoding, is declared in `prefill_in_decode_graph.py`.
"""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from nrl_patches import Defect, Observation

defect = Defect(
    __name__,
    affected="vllm>=0.14.0,<0.17.0",
    upstream=(
        "https://github.com/vllm-project/vllm/issues/34865",
        "https://github.com/vllm-project/vllm/pull/34874",
    ),
    advice="Upgrade to vLLM 0.17.0, or pass enable_prefix_caching=False for Mamba hybrids such as Nemotron 3 Nano.",
    relies_on=("vllm.v1.attention.backends.mamba_attn:BaseMambaAttentionMetadataBuilder.update_block_table",),
    victims={"Nemotron-H and Nemotron 3 Nano": "vllm>=0.14.0,<0.17.0"},
)

_MODULE = "vllm.v1.attention.backends.mamba_attn"
_STALE, _SCHEDULED, _COMPUTED = 9, 2, 1


@defect.probe
def second_builder_keeps_stale_block_indices() -> Observation:
    """Hand the metadata of one builder to another, for a batch of two decoding requests with three blocks each."""
    if find_spec("vllm.v1") is None or find_spec(_MODULE) is None:
        return Observation(present=False, evidence={"absent": _MODULE})
    import torch
    from vllm.v1.attention.backends import mamba_attn

    base: Any = getattr(mamba_attn, "BaseMambaAttentionMetadataBuilder", None)
    if not hasattr(base, "update_block_table"):  # Up to 0.13.0 every group computes its own metadata.
        return Observation(present=False, evidence={"absent": "update_block_table"})
    names = {field.name for field in dataclasses.fields(mamba_attn.BaseMambaAttentionMetadata)}
    if "block_idx_last_computed_token" not in names:  # 0.32.0 dropped the cache mode `all`.
        return Observation(present=False, evidence={"absent": "block_idx_last_computed_token"})

    class Builder(base):  # type: ignore[misc]
        metadata_cls = mamba_attn.BaseMambaAttentionMetadata

        def __getattr__(self, name: str) -> Any:
            if name.startswith("use_"):  # What later releases can switch on.
                return False
            raise AttributeError(name)

    def integers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    compilation = SimpleNamespace(cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: True))
    builder = object.__new__(Builder)
    builder.compilation_config = compilation
    builder.vllm_config = SimpleNamespace(
        cache_config=SimpleNamespace(enable_prefix_caching=True, mamba_cache_mode="all"), compilation_config=compilation
    )
    builder.kv_cache_spec = SimpleNamespace(block_size=4)
    builder.decode_cudagraph_max_bs, builder.num_spec_tokens, builder.use_spec_decode = 2, 0, False
    for name in ("state_indices_tensor", "state_indices_tensor_d"):
        setattr(builder, name, torch.full((2, 3), _STALE, dtype=torch.int32))
    for name in ("block_idx_last_scheduled_token", "block_idx_last_computed_token"):
        setattr(builder, name, integers(_STALE, _STALE))

    table = torch.arange(6, dtype=torch.int32).view(2, 3)
    known = {"num_prefills": 0, "num_prefill_tokens": 0, "num_decodes": 2, "num_decode_tokens": 2, "num_reqs": 2}
    tensors = {
        "state_indices_tensor": table,
        "state_indices_tensor_d": table,
        "block_idx_last_scheduled_token": integers(_SCHEDULED, _SCHEDULED),
        "block_idx_last_computed_token": integers(_COMPUTED, _COMPUTED),
        "seq_lens": integers(12, 12),
    }
    values: dict[str, Any] = {name: (known | tensors).get(name) for name in names}
    builder.update_block_table(mamba_attn.BaseMambaAttentionMetadata(**values), table, integers(0, 0))
    seen = builder.block_idx_last_scheduled_token.tolist(), builder.block_idx_last_computed_token.tolist()
    wanted = [_SCHEDULED] * 2, [_COMPUTED] * 2
    return Observation(seen != wanted, {"last_scheduled": str(seen[0]), "last_computed": str(seen[1])})
