"""A model names layers that it does not have among those to be sharded as a whole, and cannot be wrapped by FSDP.

Problem: `_no_split_modules` belongs to the base class of a family, and lists the layers of its towers. A model without
    a tower keeps their names: Gemma 3 and Gemma 4 as text models, Gemma 4 without audio.
Hit by: accelerate's `TRANSFORMER_BASED_WRAP`, for FSDP1 and FSDP2, and with it Trainer and TRL: `ValueError: Could not
    find the transformer layer class Gemma4AudioLayer in the model.`; and verl's `get_fsdp_wrap_policy`.
Fix: when a model has been built, the names of layers that it does not have are dropped from its own list. Where it has
    none of them the list stays, and the error with it.
Remove when: `PreTrainedModel.post_init` collects only what is there, or no reader of the list minds.

transformers itself reads the list for `device_map`, where a name without a layer changes nothing.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import accumulation
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=4.50.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/37672",
        "https://github.com/verl-project/verl/issues/4950",
    ),
    opt_out="NRL_DISABLE_ABSENT_NO_SPLIT_MODULES_PATCH",
)


@patch.fix(
    "transformers.modeling_utils:PreTrainedModel.post_init",
    guard=lambda post_init: mismatch(post_init, parameters="self", attributes="init_weights"),
)
def keep_what_is_there(post_init: Callable[..., None]) -> Callable[..., None]:
    """Build a ``post_init`` that drops the names of layers that are not there.

    Args:
        post_init: ``PreTrainedModel.post_init``, which each part of a model calls when it has been built.
    """

    def post_init_and_drop(self: Any, *args: Any, **kwargs: Any) -> None:
        post_init(self, *args, **kwargs)
        names = self._no_split_modules
        if names:
            there = {type(module).__name__ for module in self.modules()}
            kept = [name for name in names if name in there]
            if kept and len(kept) < len(names):
                self._no_split_modules = type(names)(kept)

    return post_init_and_drop


def tiny_models() -> list[Any]:
    """Return a text model of Gemma 3 and of Gemma 4, where there is one."""
    import transformers

    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    text: dict[str, Any] = {**accumulation.TEXT, **layers}
    models = []
    if hasattr(transformers, "Gemma3TextConfig"):
        models.append(transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**text)))
    if hasattr(transformers, "Gemma4TextConfig"):
        more = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "global_head_dim": 8}
        models.append(transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**text, **more)))
    return models


@patch.probe
def a_layer_is_not_found() -> Observation:
    """Let accelerate choose what FSDP wraps in text models."""
    from accelerate import FullyShardedDataParallelPlugin

    with quiet():
        models = tiny_models()
    refused = []
    for model in models:
        plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap")
        try:
            plugin.set_auto_wrap_policy(model)
        except ValueError as error:
            if "Could not find" not in str(error):
                raise
            refused.append(type(model).__name__)
    return Observation(bool(refused), {"refused": ", ".join(refused)})
