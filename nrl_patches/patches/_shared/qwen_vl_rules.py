"""What the patches of the Qwen-VL checkpoints share: names of tensors, renaming rules, a tiny checkpoint.

On the hub a Qwen2-VL or Qwen2.5-VL checkpoint names its tensors ``visual.*``, ``model.*`` and ``lm_head.weight``. In
the model they are ``model.visual.*``, ``model.language_model.*`` and ``lm_head.weight``. transformers keeps the rules
that rename the former to the latter in a registry, by model type up to 5.8, by class from 5.9 on.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HEADS = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}
"""The class that checkpoints are made of, by model type."""

HEADS_OF_BASES = {head.replace("ForConditionalGeneration", "Model"): head for head in HEADS.values()}
"""The same, by the name of the class without a head."""


def renamed(rules: Sequence[Any], name: str) -> str:
    """Return the name that the rules give a tensor.

    Args:
        rules: transformers' ``WeightRenaming`` objects, applied in order; they are not changed.
        name: The name of the tensor in the checkpoint.
    """
    for rule in copy.deepcopy(rules):  # A rule records whether it was used, and saving depends on that.
        name = rule.rename_source_key(name)[0]
    return name


def text_rules(head_rules: Sequence[Any] | None) -> list[Any]:
    """Return those rules of a head that leave the vision tower alone.

    Args:
        head_rules: The rules of the class with a head; None counts as no rule.
    """
    return [rule for rule in head_rules or () if renamed([rule], "visual.x") == "visual.x"]


def check_lookup_signature(function: Callable[..., Any]) -> str | None:
    """Check that a function takes the name that rules are looked up by, and nothing else.

    Args:
        function: transformers' lookup.

    Returns:
        None if its only parameter is ``model_type``, otherwise the difference.
    """
    found = ", ".join(inspect.signature(inspect.unwrap(function)).parameters)
    return None if found == "model_type" else f"takes ({found}) rather than (model_type)"


def registered_rules() -> Mapping[str, Any]:
    """Return the rules that transformers comes with, by name, for guards; empty where it builds them differently.

    Built separately: a lookup would fill the registry, and later changes to its sources would have no effect.
    """
    module = sys.modules.get("transformers.conversion_mapping")
    build = getattr(module, "_build_checkpoint_conversion_mapping", dict)
    rules: Mapping[str, Any] = build()
    return rules


@functools.cache
def shipped_rules() -> Mapping[str, list[tuple[Any, Any]]]:
    """Return the patterns of those rules, by name; all others in the registry come from the user."""
    return {name: _renamings(rules) for name, rules in registered_rules().items()}


def is_shipped(name: str, rules: Sequence[Any] | None) -> bool:
    """Whether rules are those that transformers comes with, rather than a user's, which no patch may change.

    Args:
        name: The model type or the class that they were looked up by.
        rules: What the lookup returned.
    """
    return rules is not None and shipped_rules().get(name) == _renamings(rules)


def _renamings(rules: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(rule.source_patterns, rule.target_patterns) for rule in rules]


def tiny_model(family: str = "qwen2_vl", *, tied: bool = False) -> Any:
    """Return a model of the family with its head and random weights, on the CPU.

    Args:
        family: ``qwen2_vl`` or ``qwen2_5_vl``.
        tied: Whether the head shares its weight with the embedding.
    """
    import torch
    import transformers

    head = getattr(transformers, HEADS[family])
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 16, "mlp_ratio": 1}
    else:
        vision |= {"intermediate_size": 16, "out_hidden_size": 16, "window_size": 8, "fullatt_block_indexes": [1]}
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 16,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    special = {"image_token_id": 12, "video_token_id": 13, "vision_start_token_id": 14, "vision_end_token_id": 15}
    config = head.config_class(text_config=text, vision_config=vision, tie_word_embeddings=tied, **special)
    config.architectures = [head.__name__]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = head(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_()
    return model


def hub_name(name: str) -> str:
    """Return the name that a tensor of the model has on the hub.

    Args:
        name: Its name in the model with the head.
    """
    for ours, theirs in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def save_sharded(
    model: Any, directory: str | Path, *, files: int = 3, rename: Callable[[str], str] = hub_name
) -> dict[str, Any]:
    """Write a checkpoint as several safetensors files with an index, and its configuration.

    Args:
        model: The model with its head.
        directory: An existing directory.
        files: The number of files.
        rename: From the name of a tensor in the model to that in the checkpoint.

    Returns:
        The tensors that were written, by their names in the model; a tied head is not written.
    """
    from safetensors.torch import save_file

    tied = getattr(model.config, "tie_word_embeddings", False)
    tensors = {n: t for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    shards = {name: f"model-{1 + i % files:05d}-of-{files:05d}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(shards.values()):
        part = {rename(n): tensors[n].contiguous() for n in tensors if shards[n] == shard}
        save_file(part, Path(directory) / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {rename(name): shard for name, shard in shards.items()}}
    (Path(directory) / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(directory)
    return tensors


def count_lost(found: Mapping[str, Any], expected: Mapping[str, Any], *, below: str = "") -> tuple[int, int]:
    """Count the tensors that are not bit for bit those of the checkpoint.

    Args:
        found: The state dict of a model.
        expected: The tensors of its checkpoint, by their names in the model with the head.
        below: ``model.`` if the model is the one without a head.

    Returns:
        The number in the vision tower, and that of all others.
    """
    import torch

    ours = {name.removeprefix(below): tensor for name, tensor in expected.items() if name.startswith(below)}
    lost = [name for name, tensor in ours.items() if not torch.equal(found[name], tensor)]
    vision = sum("visual." in name for name in lost)
    return vision, len(lost) - vision
