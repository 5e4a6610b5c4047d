"""Layerwise reload loses what a model writes by vLLM's default loader and not by the parameter's own.

Problem: during a layerwise reload parameters are on `meta`, and what is to be written is kept by `param.weight_loader`.
    A model whose `load_weights` calls `default_weight_loader(param, weight)` itself copies it into a tensor without
    memory, and the layer gets its old tensors back (`_place_kernel_tensors`), as if nothing had been sent.
Hit by: refits by `reload_weights` and `/update_weights` of Nemotron Nano VL (the projector), Nemotron Parse, Pixtral
    (up to 0.19 the whole tower, then a norm), Voxtral (the adapter), MiMo-V2 in fp8 and K2 Horizon: these weights stay
    those of the load, or of the dummy load, in every refit. Other tokens, no error; vLLM 0.16 to 0.18 say nothing,
    newer ones warn per layer that they `Failed to load weights`.
Fix: the default loader hands such a weight to the parameter's loader, marked, so that it is counted and loaded by the
    default loader, and not sharded a second time by the parameter's own.
Remove when: vLLM's models load by `param.weight_loader` alone.

ColQwen3, ColQwen3.5 and ColPali move the weight to the parameter's device first, where it has no data, so theirs is
lost as before; so are weights that are written without any loader, by `param.data.copy_(weight)`, such as the experts
of GPT-OSS. A weight that is sent twice to a layer counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import direct_loader, layerwise_reload

patch = Patch(
    __name__,
    affected="vllm>=0.16.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/57795",
        "https://github.com/vllm-project/vllm/issues/48312",
    ),
    opt_out="NRL_DISABLE_VLLM_LAYERWISE_RELOAD_DIRECT_LOADER_PATCH",
    relies_on=(
        "vllm.model_executor.model_loader.reload.layerwise:make_online_process_loader",
        "vllm.model_executor.model_loader.reload.layerwise:_layerwise_process",
        "vllm.model_executor.model_loader.reload.layerwise:_get_original_loader",
    ),
)


@patch.fix(
    "vllm.model_executor.model_loader.weight_utils:default_weight_loader",
    guard=lambda load: mismatch(load, parameters="param loaded_weight", attributes="copy_ size"),
)
def hand_over_what_has_no_memory(load: Callable[..., Any]) -> Callable[..., Any]:
    """Build a default loader that gives layerwise reload what it waits for.

    Args:
        load: vLLM's ``default_weight_loader``.
    """

    def load_or_hand_over(param: Any, loaded_weight: Any) -> Any:
        returned = load(param, loaded_weight)  # Without memory too, since it compares the sizes.
        direct_loader.hand_over(param, loaded_weight, load)
        return returned

    return load_or_hand_over


@patch.fix(
    "vllm.model_executor.model_loader.reload.meta:get_numel_loaded",
    guard=lambda count: mismatch(count, parameters="weight_loader args", attributes="copied_numel"),
)
def count_by_the_loader_that_was_called(count: Callable[..., Any]) -> Callable[..., Any]:
    """Build a count that takes the default loader for what was handed over, and hands nothing over itself.

    Args:
        count: vLLM's ``get_numel_loaded``.
    """

    def count_as_asked(weight_loader: Callable[..., Any], args: Any) -> Any:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        return direct_loader.count(count, weight_loader, args, default_weight_loader)

    return count_as_asked


@patch.probe
def weights_are_those_of_the_last_load() -> Observation:
    """Hand both parameters of a layer to the default loader during a reload, by the real functions."""
    try:
        from vllm.model_executor.model_loader.reload import layerwise  # noqa: F401
    except ImportError:
        return Observation(present=False, evidence={"absent": "vllm.model_executor.model_loader.reload"})
    with layerwise_reload.visible_garbage():
        model = layerwise_reload.layer()
        model._buffers.clear()
        direct_loader.reload(model, {"first": 2.0, "last": 3.0})
    seen = layerwise_reload.values(model)
    return Observation(seen != {"first": 2.0, "last": 3.0}, {name: str(value) for name, value in seen.items()})
