"""The embeddings of a Nemotron-H that transformers 5.3.0 to 5.15.1 saved are not loaded by newer releases.

Problem: these releases wrote `backbone.embedding.weight` for `backbone.embeddings.weight`, see
    transformers.nemotron_h_saved_names, and could read it. 5.16.0 dropped the rule, so that new checkpoints are right
    and those that exist are not read.
Hit by: `from_pretrained` of such a checkpoint: the embeddings are random, and the only sign is a report of one missing
    and one unexpected key.
Fix: before a checkpoint is loaded, the tensor gets the name that it has on the hub, unless the model has a tensor of
    the first name, or the checkpoint one of the second.
Remove when: no checkpoint of these releases is in use; transformers has no rule for them any more.
"""

import inspect
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import nemotron_h
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.16.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/48075",
        "https://github.com/NVIDIA-NeMo/RL/issues/4211",
    ),
    opt_out="NRL_DISABLE_NEMOTRON_H_CHECKPOINT_PATCH",
)


def check_takes_tensors(load: Callable[..., Any]) -> str | None:
    """Check that the function is given a model, and its tensors by name.

    Args:
        load: transformers' ``convert_and_load_state_dict_in_model``.

    Returns:
        None if it is, otherwise the difference.
    """
    return mismatch(load, parameters="model state_dict load_config", attributes="weight_mapping")


@patch.fix("transformers.core_model_loading:convert_and_load_state_dict_in_model", guard=check_takes_tensors)
def reading_wrong_saves(load: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that loads the embeddings by the name that they have on the hub.

    Args:
        load: transformers' ``convert_and_load_state_dict_in_model``.
    """
    signature = inspect.signature(load)

    def load_by_name_of_hub(model: Any, *args: Any, **kwargs: Any) -> Any:
        if not nemotron_h.is_family(model):
            return load(model, *args, **kwargs)
        call = signature.bind(model, *args, **kwargs).arguments
        call["state_dict"] = nemotron_h.by_hub_names(model, call["state_dict"])
        return load(**call)

    return load_by_name_of_hub


@patch.probe
def wrong_saves_get_lost() -> Observation:
    """Load a tiny checkpoint in the hub's layout, and one whose embeddings have the other name."""
    if not nemotron_h.exists():
        return Observation(False, {"class": "absent"})
    from transformers import NemotronHForCausalLM

    evidence = {}
    model = nemotron_h.tiny_model()
    for name in ("embeddings", "embedding"):
        with quiet(), TemporaryDirectory() as saved:
            expected = nemotron_h.write(model, saved, embeddings=name)
            evidence[f"{name}_lost"] = nemotron_h.lost(NemotronHForCausalLM.from_pretrained(saved), expected)
    return Observation(any(evidence.values()), evidence)
