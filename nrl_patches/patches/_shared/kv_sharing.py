"""A tiny model with KV-shared layers, and the observations of the probes of their patches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from nrl_patches import Observation
from nrl_patches.patches._shared.quiet import quiet

_ROUNDING = 1e-4


def before_shared_layers() -> bool:
    """Whether Gemma 3n's attention takes the shared states from the donor's layer of the cache (up to 4.55.4)."""
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAttention

    return "past_key_value" in inspect.signature(Gemma3nTextAttention.forward).parameters


def tiny_model(family: str, **changes: Any) -> Any:
    """Return a text model with six layers of which the last two are shared, random weights, on the CPU.

    Args:
        family: ``gemma4`` or ``gemma3n``.
        changes: Fields of the configuration that differ.
    """
    import torch

    fields: dict[str, Any] = {
        "vocab_size": 64,
        "vocab_size_per_layer_input": 64,
        "hidden_size": 32,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "sliding_window": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "pad_token_id": 0,
    }
    if family == "gemma4":
        from transformers import Gemma4ForCausalLM as Model
        from transformers import Gemma4TextConfig as Config

        fields["global_head_dim"] = 16
    else:
        from transformers import Gemma3nForCausalLM as Model
        from transformers import Gemma3nTextConfig as Config

        fields |= {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 6}
    model = Model(Config(**(fields | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # In the order of the names: releases differ in which projections the shared layers have and where.
        for _, weight in sorted(model.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 + (1.0 if weight.dim() == 1 else 0.0))
    return model


def observe_missing_cache(family: str) -> Observation:
    """Compare the logits of a model with and without a cache: they are the same function.

    Args:
        family: ``gemma4`` or ``gemma3n``.

    Returns:
        The defect is present if the largest difference exceeds 1e-5 of the largest logit; the evidence has both.
    """
    import torch

    model = tiny_model(family).eval()
    tokens = torch.arange(1, 17).view(1, -1)
    with torch.no_grad():
        cached = model(tokens, use_cache=True).logits
        plain = model(tokens, use_cache=False).logits
    gap, scale = (cached - plain).abs().max().item(), cached.abs().max().item()
    return Observation(gap > 1e-5 * scale, {"logit_gap": gap, "logit_scale": scale})


def observe_fsdp2(family: str) -> Observation:
    """Run a model whose layers are sharded by FSDP2, on one gloo rank: its hooks rebuild plain dicts there too.

    Args:
        family: ``gemma4`` or ``gemma3n``.

    Returns:
        The defect is present if a layer raises ``KeyError``; the evidence has the key.
    """
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = tiny_model(family)
        mesh = init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model(torch.arange(1, 17).view(1, -1), use_cache=False)
    except KeyError as error:
        return Observation(True, {"KeyError": str(error)})
    finally:
        distributed.destroy_process_group()
    return Observation(False)


def observe_reentrant(family: str) -> Observation:
    """Compare the gradients of a model with and without reentrant checkpointing: they are those of the same function.

    Args:
        family: ``gemma4`` or ``gemma3n``.

    Returns:
        The defect is present if the norm of the difference exceeds 1e-4 of the norm of the gradient.
    """
    import torch

    tokens = torch.arange(1, 17).view(1, -1)

    def gradient(*, checkpointed: bool) -> torch.Tensor:
        model = tiny_model(family).train()
        if checkpointed:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": True})
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    with quiet():
        expected, found = gradient(checkpointed=False), gradient(checkpointed=True)
    error = ((found - expected).norm() / expected.norm()).item()
    return Observation(error > _ROUNDING, {"relative_gradient_error": error})


def observe_copied_mappings(family: str) -> Observation:
    """Run a model whose layers get copies of all mappings, as from accelerate's hooks when they move the inputs.

    Args:
        family: ``gemma4`` or ``gemma3n``.

    Returns:
        The defect is present if a layer raises ``KeyError``; the evidence has the key.
    """
    import torch

    def copy(thing: Any) -> Any:
        # accelerate first tests whether an object can move itself.
        return (
            cast("Any", type(thing))(dict(thing)) if isinstance(thing, Mapping) and not hasattr(thing, "to") else thing
        )

    def copy_all(_: Any, args: Any, kwargs: Any) -> Any:
        return tuple(map(copy, args)), {name: copy(thing) for name, thing in kwargs.items()}

    model = tiny_model(family).eval()
    for layer in model.model.layers:
        layer.register_forward_pre_hook(copy_all, with_kwargs=True)
    try:
        with torch.no_grad():
            model(torch.arange(1, 17).view(1, -1), use_cache=False)
    except KeyError as error:
        return Observation(present=True, evidence={"KeyError": str(error)})
    return Observation(present=False)
