"""Qwen2-VL and Qwen2.5-VL lose their whole checkpoint under transformers 5.9 and later.

Problem: `get_combined_key_mapping` (components/checkpoint/conversion_mapping.py) looks up transformers' renaming
    rules by model type. From transformers 5.9.0 on they are kept by class and the result is None, so no name of the
    hub's layout is found in the model, and `set_model_state_dict(strict=False)` raises nothing.
Hit by: Qwen-VL on two ranks or more, or under PEFT, where Automodel loads the weights itself. The model trains from
    random weights, vision and text, without an error. The official pair 0.6.0 and 5.12.1 is affected.
Fix: where there are no rules for one of the two types, Automodel's lookup returns those of the class that the
    checkpoint was saved from. transformers' own lookup is unchanged: PEFT depends on its results.
Remove when: no supported release is older than nemo-automodel 0.7.0.

From transformers 5.4.0 to 5.5.4 the vision tower is lost for another reason: transformers.qwen_vl_checkpoint_mapping.
nemo-automodel 0.3.0 was only measured through its Checkpointer: its model classes do not import under these
transformers.
"""

import inspect
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="nemo-automodel>=0.3.0,<0.7.0 & transformers>=5.9.0,<=5.24.0",
    upstream=(
        "https://github.com/NVIDIA-NeMo/Automodel/pull/3749",
        "https://github.com/huggingface/transformers/pull/45661",
        "https://github.com/NVIDIA-NeMo/RL/pull/2224",
    ),
    opt_out="NRL_DISABLE_QWENVL_VISION_PATCH",
    relies_on=(
        "nemo_automodel.components.checkpoint.conversion_mapping:get_combined_key_mapping",
        "transformers.conversion_mapping:_build_checkpoint_conversion_mapping[Qwen2VLForConditionalGeneration]",
        "transformers.conversion_mapping:_build_checkpoint_conversion_mapping[qwen2_vl]",
        "transformers.conversion_mapping:get_checkpoint_conversion_mapping",
    ),
)


def check_asked_by_type(lookup: Callable[..., Any]) -> str | None:
    """Check that Automodel asks for rules by model type only, and that transformers keeps them by class only.

    Args:
        lookup: transformers' lookup, as Automodel's module imports it.

    Returns:
        None if both hold, otherwise the difference.
    """
    ask = getattr(inspect.unwrap(lookup), "__globals__", {}).get("get_combined_key_mapping")
    if ask is None or "model" in inspect.signature(ask).parameters:
        return "is not asked by get_combined_key_mapping, or that knows the model's class"
    rules = qwen_vl_rules.registered_rules()
    if "qwen2_vl" in rules or "Qwen2VLForConditionalGeneration" not in rules:
        return "asks a transformers that does not keep the rules of Qwen2-VL by class"
    return qwen_vl_rules.check_lookup_signature(lookup)


@patch.fix(
    "nemo_automodel.components.checkpoint.conversion_mapping:get_checkpoint_conversion_mapping",
    guard=check_asked_by_type,
)
def by_class(lookup: Callable[..., Any]) -> Callable[..., Any]:
    """Build a lookup that falls back to the class of a model type.

    Args:
        lookup: transformers' lookup, as Automodel's module imports it.
    """

    def lookup_by_class(model_type: str) -> Any:
        rules = lookup(model_type)
        return lookup(qwen_vl_rules.HEADS[model_type]) if rules is None and model_type in qwen_vl_rules.HEADS else rules

    return lookup_by_class


@patch.probe
def text_is_not_loaded() -> Observation:
    """Load a tiny checkpoint in the hub's layout through Automodel's Checkpointer."""
    import torch
    from nemo_automodel.components.checkpoint.checkpointing import Checkpointer, CheckpointingConfig

    with quiet(), TemporaryDirectory() as hub:
        model = qwen_vl_rules.tiny_model()
        expected = qwen_vl_rules.save_sharded(model, hub, files=2)
        fresh = type(model)(model.config)
        config = CheckpointingConfig(
            enabled=True,
            checkpoint_dir=hub,
            model_save_format="safetensors",
            model_cache_dir=hub,
            model_repo_id=hub,
            save_consolidated=False,
            is_peft=False,
        )
        Checkpointer(config, 0, 0, 0).load_base_model(fresh, torch.device("cpu"), hub, hub)
        vision, text = qwen_vl_rules.count_lost(fresh.state_dict(), expected)
    # The tower alone is transformers' defect: then there are rules, and one of them is missing.
    return Observation(bool(text), {"vision_lost": vision, "text_lost": text})
