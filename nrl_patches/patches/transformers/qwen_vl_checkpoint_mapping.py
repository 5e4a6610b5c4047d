"""The renaming rules of Qwen2-VL and Qwen2.5-VL checkpoints are incomplete.

Problem: `get_checkpoint_conversion_mapping` (conversion_mapping.py) returns the rules that rename the tensors of the
    hub's layout to those of the model. From 5.4.0 to 5.5.4 the rule for the vision tower, `visual` to `model.visual`,
    is missing. From 5.9.0 to 5.12.1, where rules are looked up by class, the class without a head has none at all.
Hit by: up to 5.5.4 all users of the rules, such as Automodel's checkpointing under FSDP2: the vision tower trains from
    random weights, without an error. `save_pretrained` writes `model.visual.*` as well as `model.layers.*`, a mixture
    of which the class without a head loses a half in many releases. From 5.9.0 on `AutoModel.from_pretrained`: every
    tensor of the text model is random.
Fix: the lookup adds what is missing: the rule for the vision tower, and for the class without a head those of its
    head that concern the text. The registry is unchanged, including what a user has registered in it.
Remove when: no supported release is older than transformers 5.13.0.

Checkpoints that were already written in the mixed layout stay mixed. Up to nemo-automodel 0.6.0, transformers from
5.9.0 on needs nemo_automodel.qwen_vl_checkpoint_mapping as well.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected=("transformers>=5.4.0,<5.6.0", "transformers>=5.9.0,<5.13.0"),
    upstream=(
        "https://github.com/huggingface/transformers/pull/45358",
        "https://github.com/huggingface/transformers/pull/46881",
        "https://github.com/huggingface/transformers/pull/44627",
        "https://github.com/huggingface/transformers/pull/45661",
    ),
    opt_out="NRL_DISABLE_QWENVL_VISION_PATCH",
)


def check_rules_incomplete(lookup: Callable[..., Any]) -> str | None:
    """Check that one of the two rules is missing.

    Args:
        lookup: transformers' lookup.

    Returns:
        None if one is, otherwise the difference.
    """
    rules = qwen_vl_rules.registered_rules()
    by_type = rules.get("qwen2_vl")
    without_tower = by_type and qwen_vl_rules.renamed(by_type, "visual.x") == "visual.x"
    without_base = "Qwen2VLForConditionalGeneration" in rules and "Qwen2VLModel" not in rules
    if not (without_tower or without_base):
        return "lacks no rule of Qwen2-VL"
    return qwen_vl_rules.check_lookup_signature(lookup)


@patch.fix(
    "transformers.conversion_mapping:get_checkpoint_conversion_mapping",
    guard=check_rules_incomplete,
)
def complete(lookup: Callable[..., Any]) -> Callable[..., Any]:
    """Build a lookup that adds the missing rules. Every call returns new ones, since transformers writes to them.

    Args:
        lookup: transformers' ``get_checkpoint_conversion_mapping``.
    """

    def lookup_complete(model_type: str) -> Any:
        from transformers.core_model_loading import WeightRenaming

        rules = lookup(model_type)
        if model_type in qwen_vl_rules.HEADS and qwen_vl_rules.is_shipped(model_type, rules):
            if qwen_vl_rules.renamed(rules, "visual.x") != "visual.x":
                return rules
            return [*rules, WeightRenaming(source_patterns="^visual", target_patterns="model.visual")]
        if model_type in qwen_vl_rules.HEADS_OF_BASES and rules is None:
            # Without the rule for the tower: inside the head these rules see names below "model.", where it is right.
            return qwen_vl_rules.text_rules(lookup(qwen_vl_rules.HEADS_OF_BASES[model_type])) or None
        return rules

    return lookup_complete


@patch.probe
def names_get_lost() -> Observation:
    """Save a tiny model, and load a checkpoint in the hub's layout into the class without a head."""
    from safetensors import safe_open
    from transformers import AutoModel

    with quiet(), TemporaryDirectory() as saved, TemporaryDirectory() as hub:
        model = qwen_vl_rules.tiny_model()
        model.save_pretrained(saved)
        with safe_open(Path(saved) / "model.safetensors", "pt") as file:
            names = set(file.keys())
        expected = qwen_vl_rules.save_sharded(model, hub, files=2)
        vision, text = qwen_vl_rules.count_lost(AutoModel.from_pretrained(hub).state_dict(), expected, below="model.")
    # The hub has no model.visual, and the layout of the modules themselves no model.layers.
    mixed = (
        sum(n.startswith("model.visual.") for n in names) if any(n.startswith("model.layers.") for n in names) else 0
    )
    evidence = {"saved_in_mixed_layout": mixed, "vision_lost_by_base": vision, "text_lost_by_base": text}
    return Observation(bool(mixed or vision or text), evidence)
