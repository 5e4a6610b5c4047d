"""Tiny models with linear attention, and what the probes of their patches look at."""

from __future__ import annotations

from typing import Any

from nrl_patches import Observation
from nrl_patches.patches._shared.packing import leak
from nrl_patches.patches._shared.quiet import quiet

TOLD_APART = 1e-3
"""How far logits of packed rows may be from those alone by rounding."""

FAMILIES = {
    "qwen3_next": "Qwen3Next",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
    "olmo_hybrid": "OlmoHybrid",
    "kimi_linear": "KimiLinear",
    "bailing_hybrid": "BailingHybrid",
    "lara_mini": "LaraMini",
}
"""How the names of the classes begin, by the family's package below ``transformers.models``."""


def tiny_model(family: str, attention: str = "sdpa") -> Any:
    """Return a causal language model of one layer of each kind, random weights, on the CPU.

    Args:
        family: A key of ``FAMILIES``.
        attention: The implementation of its attention.
    """
    import torch
    import transformers

    prefix = FAMILIES[family]
    kind = getattr(transformers, f"{prefix}TextConfig", None) or getattr(transformers, f"{prefix}Config")
    fields: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family in {"qwen3_next", "qwen3_5_moe", "lara_mini"}:
        fields |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
        fields |= {"shared_expert_intermediate_size": 16}
    if family in {"kimi_linear", "bailing_hybrid"}:
        fields |= {"num_key_value_heads": 4, "linear_num_heads": 4, "linear_head_dim": 8}
        fields |= {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
        fields |= {"mlp_layer_types": ["dense", "dense"]}
    settings = kind(**fields, attn_implementation=attention)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{prefix}ForCausalLM")(settings).eval()


def _exists(family: str) -> bool:
    import transformers

    return hasattr(transformers, f"{FAMILIES[family]}ForCausalLM")


def observe(family: str) -> Observation:
    """Compare the logits of packed sequences with those of each alone.

    Args:
        family: A key of ``FAMILIES``.

    Returns:
        The defect is present if they differ.
    """
    if not _exists(family):
        return Observation(present=False, evidence={"absent": family})
    with quiet():
        far = leak(tiny_model(family), use_cache=False)
    return Observation(far > TOLD_APART, {"packed": far})
