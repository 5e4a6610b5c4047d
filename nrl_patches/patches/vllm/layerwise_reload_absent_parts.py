"""A quantised layer that a refit by layerwise reload sends in part turns to garbage in the rest, unnoticed.

Problem: at its end `finalize_layerwise_reload` processes a layer that was sent something and not all. It means padding,
    and says `Delayed processing` at the level of debugging. Keys and values that were not sent, beside queries that
    were, are uninitialised memory then, which is quantised and copied over those in use.
Hit by: refits by `reload_weights` and `/update_weights` in parts, such as the projections that a LoRA adapter was
    merged into, or single experts, of models that are quantised. Other tokens or NaN, no error.
Fix: a warning, once for each layer, says what was sent, and what was not.
Remove when: vLLM refuses such a refit, or says so.

A right value is out of reach: the values in use have been quantised, packed and scaled together with those that were
replaced. Nor can the layer be left as it was: where layers share keys and values, they have these projections too, no
stream sends them, and the queries are needed. Parts are known of fused linear layers and of experts; what else is sent
in part cannot be told from padding. Layers that are not quantised are kept by `vllm.layerwise_reload_unsent_tensors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import layer_parts, layerwise_reload

patch = Patch(
    __name__,
    affected="vllm>=0.16.0,<=0.33.0",
    upstream=("https://github.com/vllm-project/vllm/pull/32133",),
    opt_out="NRL_DISABLE_VLLM_LAYERWISE_RELOAD_ABSENT_PARTS_PATCH",
    relies_on=(
        "vllm.model_executor.model_loader.reload.layerwise:make_online_process_loader",
        "vllm.model_executor.model_loader.reload.layerwise:get_layerwise_info",
    ),
)


@patch.fix("vllm.model_executor.model_loader.reload.layerwise:finalize_layerwise_reload", guard=mismatch)
def look_for_absent_parts(finalize: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that looks at what was sent before it is processed.

    Args:
        finalize: vLLM's ``finalize_layerwise_reload``.
    """

    # From 0.19.0 on it takes whatever it is given.
    def look_and_finalize(*args: Any, **kwargs: Any) -> Any:
        for model in args[:1] or [kwargs[name] for name in kwargs if name == "model"]:
            layer_parts.warn_of_absent_parts(model)
        return finalize(*args, **kwargs)

    return look_and_finalize


@patch.probe
def absent_parts_are_garbage_in_silence() -> Observation:
    """Send queries and keys to a layer of vLLM's fused class, whose method of quantisation changes the sign."""
    try:
        from vllm.model_executor.model_loader.reload import layerwise  # noqa: F401
    except ImportError:
        return Observation(present=False, evidence={"absent": "vllm.model_executor.model_loader.reload"})
    layer = layer_parts.tiny_layer()
    with layerwise_reload.visible_garbage():
        said = layer_parts.reload(layer, "q", "k")
    values = layer.weight.tolist()
    warned = any("qkv_proj" in line for line in said)
    return Observation(values != [-2.0, -2.0, 1.0] and not warned, {"values": str(values), "warned": warned})
