"""What the patches of Qwen3.5's checkpoints share: names of tensors as releases have saved them, tiny checkpoints.

On the hub and in the modules a Qwen3.5 model names its tensors ``model.visual.*``, ``model.language_model.*`` and
``lm_head.weight``, and a mixture of experts holds those of a layer in one tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nrl_patches.patches._shared import qwen_vl_rules

FAMILIES = {"qwen3_5": "Qwen3_5", "qwen3_5_moe": "Qwen3_5Moe"}
"""How the names of their classes begin, by the model type of what has the vision tower."""

TYPES = {*FAMILIES, *(f"{family}_text" for family in FAMILIES)}

SAVED_BY = ("5.3.0", "5.4.0", "5.5.4")
"""A release for each layout other than the hub's: experts split; names nested and experts split; the tower nested."""

_NESTED = re.compile(r"^model\.language_model\.(?:(?P<text>(?:language_model\.)+)|(?=visual\.))")
SPLIT_EXPERT = re.compile(r"\.mlp\.experts\.\d+\.(?:gate|up|down)_proj\.weight$")


def model_type(model: Any) -> str | None:
    """Return the model type of a model of the family, None for any other.

    Args:
        model: A ``PreTrainedModel``.
    """
    found = getattr(getattr(model, "config", None), "model_type", None)
    return found if found in TYPES else None


def hub_name(name: str) -> str:
    """Return the name that a tensor has on the hub.

    Args:
        name: The name that a release saved it under.
    """
    return _NESTED.sub(lambda match: "model.language_model." if match["text"] else "model.", name)


def by_hub_names(model: Any, tensors: Any) -> Any:
    """Return the tensors by their names on the hub; the same object if no name changes.

    Args:
        model: A model of the family.
        tensors: The tensors of a checkpoint, by name.
    """
    changed = {name: right for name in tensors if (right := hub_name(name)) != name and right not in tensors}
    if not changed:
        return tensors
    own = model.state_dict()
    return {name if name in own else changed.get(name, name): tensor for name, tensor in tensors.items()}


def without_wrong_rule(kind: str, load_config: Any) -> Any:
    """Return the configuration of a load without the rule of the class without a tower, for one with a tower.

    Args:
        kind: The model type.
        load_config: transformers' ``LoadStateDictConfig``.
    """
    from transformers.core_model_loading import WeightRenaming

    if kind not in FAMILIES:
        return load_config
    shipped = qwen_vl_rules.shipped_rules().get(f"{kind}_text", [])
    # Newer releases scope it to the text model, where it does no harm, and have a class of their own for it.
    rules = [
        rule
        for rule in load_config.weight_mapping or ()
        if type(rule) is not WeightRenaming or (rule.source_patterns, rule.target_patterns) not in shipped
    ]
    same = rules == list(load_config.weight_mapping or ())
    return load_config if same else replace(load_config, weight_mapping=rules)


def missing_experts(model: Any, load_config: Any, tensors: Any) -> list[Any]:
    """Return the rules that put experts together, if they are needed and missing.

    Args:
        model: A mixture of experts of the family.
        load_config: transformers' ``LoadStateDictConfig``.
        tensors: The tensors of a checkpoint, by name.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    split = set(filter(SPLIT_EXPERT.search, tensors))
    there = any(isinstance(rule, WeightConverter) for rule in load_config.weight_mapping or ())
    if there or not split or not split.isdisjoint(model.state_dict()):
        return []
    return [rule for rule in get_checkpoint_conversion_mapping("qwen2_moe") or () if isinstance(rule, WeightConverter)]


def saved_by(release: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors as a release writes those of the class with a head.

    Args:
        release: ``hub`` or one of ``SAVED_BY``.
        tensors: The tensors by their names in the model.
    """
    saved = dict(tensors)
    if release in {"5.3.0", "5.4.0"}:
        for name in [name for name in saved if ".mlp.experts." in name]:
            layer, _, kind = name.rpartition(".")
            kinds = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[kind]
            for i, expert in enumerate(saved.pop(name)):
                parts = zip(kinds, expert.chunk(len(kinds)), strict=True)
                saved |= {f"{layer}.{i}.{part}.weight": tensor.contiguous() for part, tensor in parts}
    if release in {"5.4.0", "5.5.4"}:
        saved = {re.sub(r"^model\.visual\.", "model.language_model.visual.", name): t for name, t in saved.items()}
    if release == "5.4.0":
        nested = "model.language_model.language_model.language_model."
        saved = {re.sub(r"^model\.language_model\.(?!visual\.)", nested, name): t for name, t in saved.items()}
    return saved


def write(release: str, model: Any, directory: str | Path, *, text_only: bool = False) -> dict[str, Any]:
    """Write a checkpoint in the layout of a release.

    Args:
        release: ``hub`` or one of ``SAVED_BY``.
        model: The model with its head.
        directory: An existing directory.
        text_only: Whether the configuration is that of the class without a tower.

    Returns:
        The tensors of the model, by their names in it.
    """
    from safetensors.torch import save_file

    tensors = model.state_dict()
    saved, files = saved_by(release, tensors), 2
    shards = {n: f"model-{1 + i % files:05d}-of-{files:05d}.safetensors" for i, n in enumerate(sorted(saved))}
    for shard in set(shards.values()):
        part = {name: tensor for name, tensor in saved.items() if shards[name] == shard}
        save_file(part, Path(directory) / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shards}
    (Path(directory) / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = model.config.text_config if text_only else model.config
    config.save_pretrained(directory)
    return dict(tensors)


def lost(model: Any, expected: Mapping[str, Any]) -> int:
    """Count the tensors of a model that are not bit for bit those of its checkpoint.

    Args:
        model: The model with its head, the one without a head, or one of the two without a tower.
        expected: The tensors of the checkpoint, by their names in the model with its head.

    Returns:
        Their number.
    """
    import torch

    found = model.state_dict()
    text = (model_type(model) or "").endswith("_text")

    def full(name: str) -> str:
        below = name.removeprefix("model.")
        return name if name == "lm_head.weight" else f"model.{'language_model.' if text else ''}{below}"

    return sum(not torch.equal(tensor, expected[full(name)]) for name, tensor in found.items())


def exists() -> bool:
    """Whether this release of transformers has the family."""
    import transformers

    return hasattr(transformers, f"{FAMILIES['qwen3_5']}ForConditionalGeneration")


def head(family: str) -> Any:
    """Return the class with a head and a tower.

    Args:
        family: ``qwen3_5`` or ``qwen3_5_moe``.
    """
    import transformers

    return getattr(transformers, f"{FAMILIES[family]}ForConditionalGeneration")


def tiny_model(family: str = "qwen3_5") -> Any:
    """Return a model of the family with its head and random weights, on the CPU.

    Args:
        family: ``qwen3_5`` or ``qwen3_5_moe``.
    """
    import torch

    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "vocab_size": 16,
        "rope_parameters": {**rope, "mrope_interleaved": True},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "qwen3_5_moe":
        text |= {"num_experts": 2, "num_experts_per_tok": 1}
        text |= {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 2}
    vision |= {"out_hidden_size": 16, "num_position_embeddings": 4}
    special = {"image_token_id": 12, "video_token_id": 13, "vision_start_token_id": 14, "vision_end_token_id": 15}
    kind = head(family)
    config = kind.config_class(text_config=text, vision_config=vision, tie_word_embeddings=False, **special)
    config.architectures = [kind.__name__]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_()
    return model
