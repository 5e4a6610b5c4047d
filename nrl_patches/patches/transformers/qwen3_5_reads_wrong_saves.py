"""What transformers 5.2.0 to 5.5.4 saved of Qwen3.5 is not loaded by other releases, nor all of it by the same ones.

Problem: 5.4.0 to 5.5.1 wrote `model.language_model.language_model.language_model` for `model.language_model`, 5.4.0 to
    5.5.4 wrote `model.language_model.visual` for `model.visual`, see transformers.qwen3_5_saved_names. No release
    knows all of these names. From 5.4.0 to 5.5.4 a rule that is meant for the class without a tower also hides the
    text of the hub's own layout from the class without a head, and split experts from both, and 5.5.2 to 5.6.1 lack
    the rules that put experts together.
Hit by: `from_pretrained` of such a checkpoint: between the tower and all but the head is random, and the only sign is
    a report of missing and unexpected keys.
Fix: before a checkpoint is loaded, its tensors get the names that they have on the hub, unless the model has a
    tensor of the first name, or the checkpoint one of the second. The wrong rule is left out, and where those for
    experts are missing, Qwen2-MoE's, which are the same, are added.
Remove when: no checkpoint of these releases is in use; transformers has no rule for them so far.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import qwen3_5
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.2.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/45357",
        "https://github.com/huggingface/transformers/pull/45358",
        "https://github.com/PrimeIntellect-ai/prime-rl/issues/2640",
    ),
    opt_out="NRL_DISABLE_QWEN3_5_CHECKPOINT_PATCH",
    relies_on=("transformers.core_model_loading:rename_source_key",),
)


def check_takes_tensors(load: Callable[..., Any]) -> str | None:
    """Check that the function is given the tensors by name, and a configuration with the rules.

    Args:
        load: transformers' ``convert_and_load_state_dict_in_model``.

    Returns:
        None if it is, otherwise the difference.
    """
    return mismatch(load, parameters="model state_dict load_config", attributes="weight_mapping rename_source_key")


@patch.fix(
    "transformers.core_model_loading:convert_and_load_state_dict_in_model",
    guard=check_takes_tensors,
)
def reading_wrong_saves(load: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that loads the tensors by the names that they have on the hub.

    Args:
        load: transformers' ``convert_and_load_state_dict_in_model``.
    """
    signature = inspect.signature(load)

    def load_by_hub_names(model: Any, *args: Any, **kwargs: Any) -> Any:
        kind = qwen3_5.model_type(model)
        if kind is None:
            return load(model, *args, **kwargs)
        call = signature.bind(model, *args, **kwargs).arguments
        call["state_dict"] = qwen3_5.by_hub_names(model, call["state_dict"])
        call["load_config"] = config = qwen3_5.without_wrong_rule(kind, call["load_config"])
        experts = qwen3_5.missing_experts(model, config, call["state_dict"]) if "moe" in kind else []
        if not experts:
            return load(**call)
        call["load_config"] = replace(config, weight_mapping=[*(config.weight_mapping or ()), *experts])
        done = load(**call)
        # Saving would reverse them, and these releases could not read the result.
        model._weight_conversions = [rule for rule in model._weight_conversions if rule not in experts]
        return done

    return load_by_hub_names


@patch.probe
def wrong_saves_get_lost() -> Observation:
    """Load tiny checkpoints in the layouts that releases have saved."""
    if not qwen3_5.exists():
        return Observation(False, {"class": "absent"})
    evidence = {}
    for family in qwen3_5.FAMILIES:
        model = qwen3_5.tiny_model(family)
        for release in ("hub", *qwen3_5.SAVED_BY):
            with quiet(), TemporaryDirectory() as saved:
                expected = qwen3_5.write(release, model, saved)
                loaded = qwen3_5.head(family).from_pretrained(saved)
                evidence[f"{family}_of_{release}_lost"] = qwen3_5.lost(loaded, expected)
    return Observation(any(evidence.values()), evidence)
