"""A LoRA adapter with the names of an older transformers is not loaded, if the renaming rules are kept by class.

Problem: `convert_peft_adapter_state_dict_for_transformers` (utils/transformers_weight_conversion.py) looks up
    transformers' renaming rules by model type. From transformers 5.9.0 on many are kept by class: the result is None.
Hit by: `PeftModel.from_pretrained(model, adapter)` of a Qwen2-VL or Qwen2.5-VL adapter from before transformers 4.52:
    none of its tensors is loaded, a warning lists the missing keys, and the model runs as if there were no adapter.
    transformers' own `model.load_adapter(adapter)` loads it.
Fix: where the type has no rules and the classes of the model have some, these rename the adapter before PEFT sees it,
    provided that they only rename, and nothing that the model itself has.
Remove when: PEFT looks up the rules of the model's class; no release so far does.

PEFT's own conversion cannot be used: it reverts the new name of the vision tower, since `base_model.model.visual.x`
ends with `model.visual.x`. PEFT 0.18 and before convert nothing under transformers 5.
"""

import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="peft>=0.19.0,<=0.21.2 & transformers>=5.9.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45661",
        "https://github.com/huggingface/peft/pull/3230",
    ),
    opt_out="NRL_DISABLE_PEFT_ADAPTER_NAMES_PATCH",
    relies_on=(
        "peft.utils.save_and_load:set_peft_model_state_dict",
        "transformers.conversion_mapping:_build_checkpoint_conversion_mapping[Qwen2VLForConditionalGeneration]",
        "transformers.conversion_mapping:get_checkpoint_conversion_mapping",
        "transformers.conversion_mapping:get_model_conversion_mapping",
    ),
)


PREFIX = "base_model.model."
"""What PEFT puts in front of the names of the model."""


def rules_by_class(model: Any) -> list[Any]:
    """Return the rules of a model whose type has none; empty where there is nothing to repair.

    Args:
        model: The base model of the adapter, a ``PreTrainedModel``.
    """
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None or conversion_mapping.get_checkpoint_conversion_mapping(model_type) is not None:
        return []
    rules: list[Any] = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    names = [name for name, _ in model.named_parameters()]
    safe = all(isinstance(rule, WeightRenaming) and _renamed([rule], name) == name for rule in rules for name in names)
    return rules if safe else []


def _renamed(rules: list[Any], name: str) -> str:
    for rule in rules:
        name = rule.rename_source_key(name)[0]
    return name


@patch.fix(
    "peft.utils.transformers_weight_conversion:convert_peft_adapter_state_dict_for_transformers",
    guard=lambda convert: mismatch(
        convert,
        parameters="model peft_config adapter_state_dict",
        attributes="get_checkpoint_conversion_mapping get_model_conversion_mapping",
    ),
)
def by_class(convert: Callable[..., Any]) -> Callable[..., Any]:
    """Build a conversion that also knows rules by class.

    Args:
        convert: PEFT's ``convert_peft_adapter_state_dict_for_transformers``.
    """
    signature = inspect.signature(convert)

    def convert_by_class(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        model, config, tensors = (call.arguments[n] for n in ("model", "peft_config", "adapter_state_dict"))
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        rules = rules_by_class(base) if config.peft_type == "LORA" else []
        renamed = {n: PREFIX + _renamed(rules, n.removeprefix(PREFIX)) for n in tensors if n.startswith(PREFIX)}
        # What is there under both names keeps both: PEFT loads the newer one, and calls the older unexpected.
        renamed = {old: new for old, new in renamed.items() if new not in tensors}
        call.arguments["adapter_state_dict"] = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
        return convert(*call.args, **call.kwargs)

    return convert_by_class


@patch.probe
def adapter_is_not_loaded() -> Observation:
    """Convert the names of a Qwen2-VL adapter from before transformers 4.52, as ``PeftModel.from_pretrained`` does."""
    import peft
    import torch
    from peft.utils import transformers_weight_conversion

    with quiet():
        config = peft.LoraConfig(r=1, target_modules=["q_proj", "qkv"])
        model = peft.get_peft_model(qwen_vl_rules.tiny_model(), config)
        names = [name.removeprefix(PREFIX) for name in peft.get_peft_model_state_dict(model)]
        old = {PREFIX + qwen_vl_rules.hub_name(name): torch.zeros(1) for name in names}
        found = transformers_weight_conversion.convert_peft_adapter_state_dict_for_transformers(model, config, old)
    lost = [name for name in names if PREFIX + name not in found]
    vision = sum("visual." in name for name in lost)
    # The tower alone is lost where the rules are kept by type: then PEFT converts, and takes back.
    evidence = {"vision_lost": vision, "text_lost": len(lost) - vision, "tensors": len(names)}
    return Observation(len(lost) > vision, evidence)
