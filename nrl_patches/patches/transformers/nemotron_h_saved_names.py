"""The embeddings of Nemotron-H are saved under a name that nobody else loads.

Problem: transformers' rules for the family (conversion_mapping.py) rename `embedding.weight` to `embeddings.weight`,
    although all checkpoints on the hub have the second. Loading never needs the rule, but `save_pretrained` reverses
    it, and writes `backbone.embedding.weight`; from 5.6.0 on only of what was not loaded in the hub's layout, such as a
    model that was made from a configuration.
Hit by: whoever loads the result in transformers 5.16.0 or newer, with the code of the hub, in NeMo Automodel before
    0.7.0 or in vLLM: the embeddings are random, with no more than a report of missing keys, or the load raises.
Fix: the tensor is saved under the name that it has on the hub, as in the fixed release.
Remove when: no supported release is older than transformers 5.16.0.

Checkpoints that were saved wrongly are read by transformers.nemotron_h_reads_wrong_saves where transformers doesn't.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import nemotron_h
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.3.0,<5.16.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/48075",
        "https://github.com/NVIDIA-NeMo/RL/issues/4211",
    ),
    opt_out="NRL_DISABLE_NEMOTRON_H_CHECKPOINT_PATCH",
    relies_on=("transformers.core_model_loading:rename_source_key",),
)


def check_returns_names(revert: Callable[..., Any]) -> str | None:
    """Check that the function is given the tensors of a model, and returns them by the names to save.

    Args:
        revert: transformers' ``revert_weight_conversion``.

    Returns:
        None if it is, otherwise the difference.
    """
    return mismatch(revert, parameters="model state_dict", attributes="get_model_conversion_mapping rename_source_key")


@patch.fix("transformers.core_model_loading:revert_weight_conversion", guard=check_returns_names)
def by_name_of_hub(revert: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that names the embeddings as the hub does.

    Args:
        revert: transformers' ``revert_weight_conversion``.
    """

    def revert_by_name_of_hub(model: Any, state_dict: Any) -> Any:
        saved = revert(model, state_dict)
        return nemotron_h.by_hub_names(model, saved) if nemotron_h.is_family(model) else saved

    return revert_by_name_of_hub


@patch.probe
def name_is_not_that_of_hub() -> Observation:
    """Save a tiny model, and a loaded one, and compare the names with the hub's."""
    from safetensors import safe_open

    if not nemotron_h.exists():
        return Observation(False, {"class": "absent"})
    from transformers import NemotronHForCausalLM

    made = nemotron_h.tiny_model()
    expected = set(nemotron_h.hub_names(made.state_dict()))
    evidence = {}
    with quiet(), TemporaryDirectory() as hub:
        nemotron_h.write(made, hub)
        for origin, model in {"made": made, "loaded": NemotronHForCausalLM.from_pretrained(hub)}.items():
            with TemporaryDirectory() as saved:
                model.save_pretrained(saved)
                with safe_open(Path(saved) / "model.safetensors", "pt") as file:
                    evidence[f"{origin}_names_lost"] = len(expected - set(file.keys()))
    return Observation(any(evidence.values()), evidence)
