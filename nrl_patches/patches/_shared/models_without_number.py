"""Tiny models of which transformers' Trainer takes the mean of means: what the probe of that trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches.patches._shared import accumulation


def builds() -> dict[str, Callable[[], Any]]:
    """Return by its name what builds each of these models that there is, and that takes no number, in this release."""
    import transformers

    there = {"bert": tiny_bert}
    if hasattr(transformers, "Qwen3VLMoeForConditionalGeneration"):
        there["qwen3_vl_moe"] = tiny_qwen3_vl_moe
    return {name: build for name, build in there.items() if not _takes_number(build())}


def tiny_bert() -> Any:
    """Return a BERT with random weights, whose `forward` takes the number from 5.0.0 on."""
    from transformers import BertConfig, BertForMaskedLM

    config = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return BertForMaskedLM(BertConfig(**config, **dropout, num_attention_heads=2))


def tiny_qwen3_vl_moe() -> Any:
    """Return a Qwen3-VL-MoE with random weights, which says that it takes no number, for the loss of its router."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text = accumulation.TEXT | experts | {"rope_parameters": rope, "rope_scaling": rope}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    config = Qwen3VLMoeConfig(
        text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    )
    return Qwen3VLMoeForConditionalGeneration(config)


def _takes_number(model: Any) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    takes: bool = getattr(model, "accepts_loss_kwargs", any(p.kind is p.VAR_KEYWORD for p in parameters))
    return takes
