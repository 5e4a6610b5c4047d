"""What the patches of Nemotron-H's checkpoints share: the name of the embeddings, tiny checkpoints.

On the hub every tensor of the class with a head is below ``backbone``, but for the head's, and the embeddings are
``backbone.embeddings.weight``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL_TYPE = "nemotron_h"

_SINGULAR = re.compile(r"^(?P<prefix>(?:(?:backbone|model)\.)?)embedding\.weight$")


def is_family(model: Any) -> bool:
    """Whether a model is a Nemotron-H.

    Args:
        model: A ``PreTrainedModel``.
    """
    return getattr(getattr(model, "config", None), "model_type", None) == MODEL_TYPE


def by_hub_names(model: Any, tensors: Any) -> Any:
    """Return the tensors by their names on the hub; the same object if no name changes.

    Args:
        model: A model of the family.
        tensors: Tensors by name, or what a checkpoint has in their place.
    """
    changed = {name: _SINGULAR.sub(r"\g<prefix>embeddings.weight", name) for name in tensors if _SINGULAR.match(name)}
    changed = {name: right for name, right in changed.items() if right not in tensors}
    # Not by state_dict(), which all ranks of FSDP must call, where one alone saves.
    if not changed or any(name in changed for name, _ in model.named_parameters()):
        return tensors
    return {changed.get(name, name): tensor for name, tensor in tensors.items()}


def exists() -> bool:
    """Whether this release of transformers has the family."""
    import transformers

    return hasattr(transformers, "NemotronHForCausalLM")


def tiny_model() -> Any:
    """Return a model with its head and random weights, on the CPU: a layer each of Mamba, attention and experts."""
    import torch
    from transformers import NemotronHConfig, NemotronHForCausalLM

    config = NemotronHConfig(
        hybrid_override_pattern="M*E",
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=2,
        conv_kernel=4,
        chunk_size=8,
        n_routed_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        moe_shared_expert_intermediate_size=8,
        max_position_embeddings=64,
        use_mamba_kernels=False,
    )
    config.architectures = ["NemotronHForCausalLM"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NemotronHForCausalLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_()
    return model.eval()


def hub_names(
    tensors: Mapping[str, Any], *, embeddings: str = "embeddings", prefix: str = "backbone."
) -> dict[str, Any]:
    """Return the tensors as the hub has them, or with embeddings of another name.

    Args:
        tensors: The tensors by their names in the model with its head.
        embeddings: The name of the embeddings.
        prefix: What the other names than the head's begin with.
    """
    saved: dict[str, Any] = {}
    for name, tensor in tensors.items():
        own = re.sub(r"^model\.", prefix, name).replace("embeddings.weight", f"{embeddings}.weight")
        layer, _, kind = own.rpartition(".")
        if layer.endswith(".experts"):
            saved |= {f"{layer}.{i}.{kind}.weight": expert.contiguous() for i, expert in enumerate(tensor)}
        else:
            saved[own] = tensor.contiguous()
    return saved


def write(model: Any, directory: str | Path, **names: str) -> dict[str, Any]:
    """Write a checkpoint.

    Args:
        model: The model with its head.
        directory: An existing directory.
        names: Those of ``hub_names``.

    Returns:
        The tensors of the model, by their names in it.
    """
    from safetensors.torch import save_file

    tensors = model.state_dict()
    saved, files = hub_names(tensors, **names), 2
    shards = {n: f"model-{1 + i % files:05d}-of-{files:05d}.safetensors" for i, n in enumerate(sorted(saved))}
    for shard in set(shards.values()):
        part = {name: tensor for name, tensor in saved.items() if shards[name] == shard}
        save_file(part, Path(directory) / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shards}
    (Path(directory) / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    model.config.save_pretrained(directory)
    return dict(tensors)


def lost(model: Any, expected: Mapping[str, Any]) -> int:
    """Count the tensors of a model that are not bit for bit those of its checkpoint.

    Args:
        model: The model with or without its head.
        expected: The tensors of the checkpoint, by their names in the model with its head.

    Returns:
        Their number.
    """
    import torch

    found = model.state_dict()
    return sum(
        not torch.equal(tensor, expected[name if name in expected else f"model.{name}"])
        for name, tensor in found.items()
    )
