"""Tiny models whose router has a loss: what the probe of checkpointing looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nrl_patches.patches._shared import accumulation

SWITCH = {
    "vocab_size": 16,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_heads": 2,
    "num_experts": 4,
    "dropout_rate": 0.0,
    "router_jitter_noise": 0.0,
    "router_z_loss_coef": 1.0,
    "router_aux_loss_coef": 1.0,
    "decoder_start_token_id": 0,
}
"""The configuration of a tiny model of Switch Transformers, in which nothing is random."""


def tiny_models() -> dict[str, Callable[[], Any]]:
    """Return what builds models whose router's loss outweighs the text's, by their names.

    Returns:
        Mixtral, whose logits are recorded from 4.54.0 on, and Switch Transformers where its layers are checkpointed as
        Mixtral's are.
    """
    from transformers import MixtralConfig, MixtralForCausalLM, SwitchTransformersConfig
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    experts = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 1.0}
    models = {"Mixtral": lambda: MixtralForCausalLM(MixtralConfig(**accumulation.TEXT, **experts))}
    if issubclass(switch.SwitchTransformersBlock, GradientCheckpointingLayer):
        config = SwitchTransformersConfig(**SWITCH)
        models["Switch Transformers"] = lambda: switch.SwitchTransformersForConditionalGeneration(config)
    return models
