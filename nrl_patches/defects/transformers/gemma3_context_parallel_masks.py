"""The sliding-window layers of Gemma 3 need a mask that torch's context parallelism refuses or never sees.

Problem: `torch.distributed.tensor.experimental.context_parallel` knows causal attention and nothing else; its ring
    attention raises NotImplementedError for a mask ("attn_bias is not supported yet"). Gemma 3 hands one to
    `scaled_dot_product_attention` in every sliding-window layer as soon as the sequence on a rank is longer than the
    window. If it is not, no mask is built, and the ring attends over the whole sequence instead of the window: wrong
    activations, no error (accelerate, whose hook drops every mask, now refuses such models: its pull request 4177).
Hit by: Gemma 3 under FSDP2 with context parallelism in NeMo RL's DTensor worker or anything else built on torch's. Up
    to 4.52 every layer gets a mask, always; from 4.53 on, the sliding-window layers, in long sequences.
Advice: run Gemma 3 with context_parallel_size 1; shard by FSDP2 or tensor parallelism instead. Nothing is gained by
    leaving out the attention mask of ones: what was measured is the same without it.
Remove when: torch's context parallelism takes masks, or Gemma 3 runs through an attention that knows its window.

The ring itself has kernels for GPUs only. The probe calls its function with the mask, which raises before any of them,
and sees what the model hands to attention. What is lost on short shards was read, not measured.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from nrl_patches import Defect, Observation

defect = Defect(
    __name__,
    affected="transformers>=4.50.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/accelerate/pull/4177",
        "https://github.com/pytorch/pytorch/blob/134179474539648ba7dee1317959529fbd0e7f89/torch/distributed/tensor/experimental/_attention.py#L262",
        "https://github.com/NVIDIA-NeMo/RL/pull/450",
    ),
    advice="Do not use torch's context parallelism with Gemma 3: its sliding windows need masks.",
    relies_on=("transformers.models.gemma3.modeling_gemma3:Gemma3TextModel.forward",),
)

_WINDOW = 8


def _masks(tokens: int) -> list[Any]:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": _WINDOW}
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def spy(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        seen.append(attn_mask)
        return attend(query, key, value, attn_mask, *args, **kwargs)

    model = Gemma3ForCausalLM._from_config(Gemma3TextConfig(**sizes, **heads), attn_implementation="sdpa").eval()
    ones = torch.ones(1, tokens, dtype=torch.long)
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", spy), torch.no_grad():
        model(ones, attention_mask=ones, use_cache=False)
    return seen


def _is_refused(mask: Any) -> bool:
    import torch

    try:
        from torch.distributed.tensor.experimental._context_parallel import _attention
    except ImportError:  # Where older releases of torch have it.
        from torch.distributed.tensor.experimental import _attention

    query = torch.zeros(1, 2, 2 * _WINDOW, 16)
    ring: Any = _attention._scaled_dot_product_ring_efficient_attention
    try:
        ring(None, query, query, query, attn_bias=mask)
    except NotImplementedError:
        return True
    except Exception:  # noqa: BLE001 - it takes the mask, and goes on to what needs a GPU
        return False
    return False


@defect.probe
def sliding_layers_hand_over_a_refused_mask() -> Observation:
    """Run a tiny model of five sliding-window layers and a full one on a sequence longer than the window."""
    try:
        long, short = _masks(2 * _WINDOW), _masks(_WINDOW // 2)
    except ImportError:  # 4.49 has no Gemma 3.
        return Observation(present=False, evidence={"absent": "Gemma3ForCausalLM"})
    masks = [mask for mask in long if mask is not None]
    refused = bool(masks) and _is_refused(masks[0])
    counts = {"masked_layers": len(masks), "masked_layers_if_short": sum(mask is not None for mask in short)}
    return Observation(refused, counts | {"refused_by_torch": refused})
