"""Tiny models with state-space layers or short convolutions, and what the probes of their patches look at."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any
from zlib import crc32

from nrl_patches import Observation
from nrl_patches.patches._shared.packing import ROUNDING, leak
from nrl_patches.patches._shared.quiet import quiet

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What their configurations have in common."""

STATE = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

MAMBA: Mapping[str, Mapping[str, Any]] = {
    "NemotronH": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
    },
    "FalconH1": {**STATE, "mamba_d_ssm": 64},
    "Bamba": {**STATE, "attn_layer_indices": [1]},
    "GraniteMoeHybrid": {
        **STATE,
        **EXPERTS,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
        "position_embedding_type": "rope",
    },
    "Zamba2": {
        "n_mamba_heads": 8,
        "mamba_d_state": 8,
        "mamba_ngroups": 2,
        "chunk_size": 16,
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "mamba", "hybrid"],
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "num_key_value_heads": 4,
        "use_mem_rope": True,
    },
    "Jamba": {
        **EXPERTS,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
}
"""By the prefix of their classes, what tiny models with Mamba layers need."""

SHORT_CONVOLUTION: Mapping[str, Mapping[str, Any]] = {
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "Lfm2Moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Lfm3": {"layer_types": ["conv", "full_attention"]},
}
"""The same of those with short convolutions."""


def tiny_model(family: str, attention: str = "eager", **changes: Any) -> Any:
    """Return a causal language model with a layer of each kind, random weights, on the CPU.

    Args:
        family: A key of :data:`MAMBA` or :data:`SHORT_CONVOLUTION`.
        attention: The implementation of its attention.
        changes: Fields of its configuration that differ.
    """
    import torch
    import transformers

    fields = {**TEXT, **MAMBA.get(family, {}), **SHORT_CONVOLUTION.get(family, {}), **changes}
    kind = getattr(transformers, f"{family}Config")
    # Falcon-H1 of 5.4.0 declares an integer there, and refuses its own default.
    if "int" in str(getattr(kind, "__annotations__", {}).get("use_cache")):
        fields["use_cache"] = 1
    settings = kind(**fields, attn_implementation=attention)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(settings).eval()
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # Each by its name, as releases differ in which there are.
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(crc32(name.encode())))
    return model


def observe(families: Iterable[str]) -> Observation:
    """Compare the logits of packed sequences with those of each alone.

    Args:
        families: Keys of :data:`MAMBA` or :data:`SHORT_CONVOLUTION`; those that the release has no class for are left
            out.

    Returns:
        The defect is present if those of any family differ.
    """
    import transformers

    with quiet():
        there = [family for family in families if hasattr(transformers, f"{family}ForCausalLM")]
        if "Zamba2" in there and not _is_zamba2_told():
            there.remove("Zamba2")
        evidence = {family: leak(without_attention(tiny_model(family)), use_cache=False) for family in there}
    return Observation(max(evidence.values(), default=0.0) > ROUNDING, evidence)


def without_attention(model: Any) -> Any:
    """Return a model whose attention adds nothing: not every release tells packed sequences apart there.

    Args:
        model: A model of :func:`tiny_model`.
    """
    for name, weight in model.named_parameters():
        if ".o_proj." in name or ("self_attn" in name and ".out_proj." in name):
            weight.requires_grad_(False).zero_()
    return model


def _is_zamba2_told() -> bool:
    """Whether the layers of Zamba2 are told of positions; before 5.0.0 `hybrid_masks_without_position_ids` does it."""
    from transformers.models.zamba2.modeling_zamba2 import Zamba2HybridLayer

    return "position_ids" in inspect.signature(Zamba2HybridLayer.forward).parameters
