"""Qwen3.5 and Qwen3.5-MoE are saved in another layout than the hub's.

Problem: `revert_weight_conversion` (core_model_loading.py) reverses rules that no tensor was loaded by. From 5.4.0 on
    these include the rule of the text model, which is meant for the class without a tower: `save_pretrained` writes
    `model.language_model.visual`, and up to 5.5.1 `model.language_model.language_model.language_model` as well. Up to
    5.5.1 it splits the experts that the hub has in one tensor.
Hit by: whoever trains such a model and loads the result in another release, in vLLM or in Megatron-Bridge: up to all
    tensors but the head are random, and transformers says no more than a report of missing keys.
Fix: a model is saved without these rules, hence by the names of its modules, which are the hub's.
Remove when: no supported release is older than transformers 5.6.0.

Checkpoints that were saved wrongly are read by transformers.qwen3_5_reads_wrong_saves. Releases from 5.6.2 on still
split the experts of a model that was made from a configuration, or read from a checkpoint that splits them.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import qwen3_5, qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.2.0,<5.6.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/45357",
        "https://github.com/huggingface/transformers/pull/45358",
        "https://github.com/huggingface/transformers/pull/45340",
        "https://github.com/verl-project/verl/issues/5765",
    ),
    opt_out="NRL_DISABLE_QWEN3_5_CHECKPOINT_PATCH",
)


def check_reverses_all(revert: Callable[..., Any]) -> str | None:
    """Check that rules are reversed whether or not they were used.

    Args:
        revert: transformers' ``revert_weight_conversion``.

    Returns:
        None if they are, otherwise the difference.
    """
    from transformers.core_model_loading import WeightRenaming

    if hasattr(WeightRenaming, "was_used"):
        return "knows which rules were used"
    return mismatch(revert, parameters="model state_dict", attributes="get_model_conversion_mapping rename_source_key")


def rules_of_hub(model: Any, kind: str) -> list[Any] | None:
    """Return the rules that the layout of the hub needs reversed, None if these are all that the model has.

    Args:
        model: A model of the family.
        kind: Its model type.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    shipped = {name: rules for name, rules in qwen_vl_rules.shipped_rules().items() if name in qwen3_5.TYPES}
    if not all(qwen_vl_rules.is_shipped(name, get_checkpoint_conversion_mapping(name)) for name in shipped):
        return None  # The user's own decide how to save.
    rules = getattr(model, "_weight_conversions", None)
    if rules is None:
        rules = get_model_conversion_mapping(model, add_legacy=False)
    patterns = [pattern for rules_ in shipped.values() for pattern in rules_]
    # Without a tower the text model's rule restores the names that the hub has for it.
    kept = [
        rule
        for rule in rules
        if not (kind in qwen3_5.FAMILIES or isinstance(rule, WeightConverter))
        or (rule.source_patterns, rule.target_patterns) not in patterns
    ]
    return kept if len(kept) < len(rules) else None


@patch.fix("transformers.core_model_loading:revert_weight_conversion", guard=check_reverses_all)
def by_names_of_hub(revert: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that reverses only what the layout of the hub needs.

    Args:
        revert: transformers' ``revert_weight_conversion``.
    """

    def revert_by_names_of_hub(model: Any, state_dict: Any) -> Any:
        kind = qwen3_5.model_type(model)
        rules = None if kind is None else rules_of_hub(model, kind)
        if rules is None:
            return revert(model, state_dict)
        before = {name: value for name, value in vars(model).items() if name == "_weight_conversions"}
        vars(model)["_weight_conversions"] = rules
        try:
            return revert(model, state_dict)
        finally:
            del vars(model)["_weight_conversions"]
            vars(model).update(before)

    return revert_by_names_of_hub


@patch.probe
def names_are_not_those_of_hub() -> Observation:
    """Load tiny checkpoints in the hub's layout and save them again."""
    from safetensors import safe_open

    if not qwen3_5.exists():
        return Observation(False, {"class": "absent"})
    evidence = {}
    for family in qwen3_5.FAMILIES:
        with quiet(), TemporaryDirectory() as hub, TemporaryDirectory() as saved:
            expected = qwen3_5.write("hub", qwen3_5.tiny_model(family), hub)
            qwen3_5.head(family).from_pretrained(hub).save_pretrained(saved)
            with safe_open(Path(saved) / "model.safetensors", "pt") as file:
                evidence[f"{family}_names_lost"] = len(set(expected) - set(file.keys()))
    return Observation(any(evidence.values()), evidence)
