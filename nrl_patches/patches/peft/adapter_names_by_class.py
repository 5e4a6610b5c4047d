"""A LoRA adapter with the names of an older transformers is not loaded, if the renaming rules are kept by class.

Problem: `convert_peft_adapter_state_dict_for_transformers` (utils/transformers_weight_conversion.py) asks transformers
    whether a model type has renaming rules. From transformers 5.9.0 on many are kept by class, and the answer is None.
Hit by: `PeftModel.from_pretrained(model, adapter)` of a Qwen2-VL or Qwen2.5-VL adapter from before transformers 4.52:
    none of its tensors is loaded, a warning lists the missing keys, and the model answers as if there were no adapter.
    transformers' own `model.load_adapter(adapter)` loads it.
Fix: where the type has no rules and the classes of the model have some, PEFT hears of a class in the place of the type.
    Only rules that rename, and none of the model's own tensors, are made use of.
Remove when: PEFT asks for the rules of the model; until now no release does.

PEFT 0.18 and before convert nothing under transformers 5. PEFT 0.19 gives transformers its wrapper in the place of the
model, below which rules by class do not apply; here it gives the model, as it does itself since 0.20.0.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, objection_unless
from nrl_patches.patches.transformers import _qwen_vl
from nrl_patches.patches.transformers._quiet import quiet

patch = Patch(
    __name__,
    affected="peft>=0.19.0,<0.22 & transformers>=5.9.0,<5.25",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45661",
        "https://github.com/huggingface/peft/pull/3230",
    ),
    opt_out="NRL_DISABLE_PEFT_ADAPTER_NAMES_PATCH",
)


class _With:
    """Something with other attributes."""

    def __init__(self, behind: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes, _behind=behind)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


def class_with_rules(model: Any) -> str | None:
    """Return the name of a class in a model that has rules, None where nothing is to be repaired."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    lookup = conversion_mapping.get_checkpoint_conversion_mapping
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None or lookup(model_type) is not None:
        return None
    rules = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    for rule in rules:
        names = (name for name, _ in model.named_parameters())
        if not isinstance(rule, WeightRenaming) or any(rule.rename_source_key(n)[0] != n for n in names):
            return None
    classes = dict.fromkeys(kind.__name__ for part in model.modules() for kind in type(part).__mro__)
    return next((name for name in classes if lookup(name) is not None), None) if rules else None


@patch.fix(
    "peft.utils.transformers_weight_conversion:convert_peft_adapter_state_dict_for_transformers",
    guard=lambda convert: objection_unless(
        convert,
        parameters="model peft_config adapter_state_dict adapter_name",
        attributes="get_checkpoint_conversion_mapping get_model_conversion_mapping",
    ),
)
def by_class(convert: Callable[..., Any]) -> Callable[..., Any]:
    """Build the conversion that is shown a class in the place of the model type."""

    def convert_by_class(model: Any, *args: Any, **kwargs: Any) -> Any:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        name = class_with_rules(base)
        seen = model if name is None else _With(base, config=_With(base.config, model_type=name))
        return convert(seen, *args, **kwargs)

    return convert_by_class


@patch.probe
def adapter_is_not_loaded() -> Observation:
    """Convert the names of a Qwen2-VL adapter from before transformers 4.52, as ``PeftModel.from_pretrained`` does."""
    import peft
    import torch
    from peft.utils import transformers_weight_conversion

    with quiet():
        config = peft.LoraConfig(r=1, target_modules=["q_proj", "qkv"])
        model = peft.get_peft_model(_qwen_vl.tiny_model(), config)
        names = [name.removeprefix("base_model.model.") for name in peft.get_peft_model_state_dict(model)]
        old = {f"base_model.model.{_qwen_vl.hub_name(name)}": torch.zeros(1) for name in names}
        found = transformers_weight_conversion.convert_peft_adapter_state_dict_for_transformers(model, config, old)
    lost = [name for name in names if f"base_model.model.{name}" not in found]
    vision = sum("visual." in name for name in lost)
    # The tower alone is what PEFT 0.19 loses under transformers that keep the rules by type.
    evidence = {"vision_lost": vision, "text_lost": len(lost) - vision, "tensors": len(names)}
    return Observation(len(lost) > vision, evidence)
