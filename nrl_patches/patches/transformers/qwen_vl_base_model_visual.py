"""Qwen2VLModel and Qwen2_5_VLModel lose the vision tower of checkpoints that name it `model.visual`.

Problem: since 5.13.0 the rule of the class without a head (conversion_mapping.py) puts `language_model` into every name
    below `model`, including the tower's: no parameter is named `model.language_model.visual.x`.
Hit by: `AutoModel.from_pretrained` of what Automodel saves of a trained Qwen-VL, and of what transformers 5.4.0 to
    5.5.4 saved: the vision tower is random. The hub's own checkpoints name it `visual` and load.
Fix: the lookup returns the head's rule for the text instead, which leaves the tower alone.
Remove when: transformers loads such a checkpoint; no release from 5.13.0 on does so far.

No upstream issue was found; the pull request is the one that introduced the rule.
"""

import inspect
import sys
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.13.0,<=5.24.0",
    upstream=("https://github.com/huggingface/transformers/pull/46881",),
    opt_out="NRL_DISABLE_QWENVL_VISION_PATCH",
    relies_on=(
        "transformers.conversion_mapping:_build_checkpoint_conversion_mapping[Qwen2VLModel]",
        "transformers.conversion_mapping:_build_checkpoint_conversion_mapping[Qwen2VLForConditionalGeneration]",
        "transformers.conversion_mapping:_MODEL_TO_CONVERSION_PATTERN[Qwen2_5_VLModel]",
        "transformers.conversion_mapping:_MODEL_TO_CONVERSION_PATTERN[Qwen2_5_VLForConditionalGeneration]",
        "transformers.conversion_mapping:get_model_conversion_mapping",
    ),
)


def moves_tower(rules: Any) -> bool:
    """Whether the rules move the tower away from where the checkpoint rightly has it.

    Args:
        rules: What the lookup returned for the class without a head.
    """
    return bool(rules) and qwen_vl_rules.renamed(rules, "model.visual.x") != "model.visual.x"


def check_tower_may_move(lookup: Callable[..., Any]) -> str | None:
    """Check that the class without a head has a rule. Whether that moves the tower is tested at every lookup.

    Args:
        lookup: transformers' lookup.

    Returns:
        None if it has one, otherwise the difference.
    """
    # By the constants of its code: building all rules to look at one would cost each importing process 80 ms.
    build = getattr(sys.modules.get("transformers.conversion_mapping"), "_build_checkpoint_conversion_mapping", None)
    constants = getattr(getattr(inspect.unwrap(build), "__code__", None), "co_consts", ()) if build else ()
    if not any("Qwen2VLModel" in (name if isinstance(name, tuple) else (name,)) for name in constants):
        return "is built without a rule for Qwen2VLModel"
    return qwen_vl_rules.check_lookup_signature(lookup)


@patch.fix(
    "transformers.conversion_mapping:get_checkpoint_conversion_mapping",
    guard=check_tower_may_move,
)
def leave_tower(lookup: Callable[..., Any]) -> Callable[..., Any]:
    """Build a lookup that returns the head's rule for the text in place of one that moves the tower.

    Args:
        lookup: transformers' ``get_checkpoint_conversion_mapping``.
    """

    def lookup_leaving_tower(model_type: str) -> Any:
        rules = lookup(model_type)
        if (
            model_type in qwen_vl_rules.HEADS_OF_BASES
            and qwen_vl_rules.is_shipped(model_type, rules)
            and moves_tower(rules)
        ):
            return qwen_vl_rules.text_rules(lookup(qwen_vl_rules.HEADS_OF_BASES[model_type])) or rules
        return rules

    return lookup_leaving_tower


@patch.probe
def tower_gets_lost() -> Observation:
    """Load a tiny checkpoint that has the names of the modules into the class without a head."""
    from transformers import AutoModel

    with quiet(), TemporaryDirectory() as directory:
        expected = qwen_vl_rules.save_sharded(qwen_vl_rules.tiny_model(), directory, files=2, rename=str)
        model = AutoModel.from_pretrained(directory)
    vision, text = qwen_vl_rules.count_lost(model.state_dict(), expected, below="model.")
    # Releases before 5.4.0 do not support that layout, and lose the text as well.
    return Observation(bool(vision and not text), {"vision_lost": vision, "text_lost": text})
