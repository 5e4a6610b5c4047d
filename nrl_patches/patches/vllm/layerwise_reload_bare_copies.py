"""Layerwise reload loses what a model copies into its parameters without any weight loader.

Problem: during a layerwise reload parameters are on `meta`, and what is to be written is kept by `param.weight_loader`.
    What `load_weights` writes by `param.copy_(weight)` or `param.data[i].copy_(weight)` goes to a tensor without
    memory, and the layer gets its old tensors back, as if nothing had been sent.
Hit by: refits by `reload_weights` and `/update_weights` of GPT-OSS (all experts if they are not quantised, and up to
    0.32 the attention sinks), of MiMo-V2, DeepSeek V4, Laguna and HY-V4 (the sinks), Step3 and DiffusionGemma, and of
    ColBERT, ColPali and ColQwen3 (the projection): these weights stay those of the load, or of the dummy load, in every
    refit. Other tokens, no error.
Fix: while `load_weights` runs in a reload, a torch function mode sees what is copied into a parameter that is waited
    for, and defers it by vLLM's own loader, which counts it, and repeats it when the layer has memory.
Remove when: vLLM's models load by `param.weight_loader` alone.

Weights are kept until their layer is complete, as those of loaders are, and are not copied: who reuses a buffer must
clone them. What cannot be repeated (a weight that was computed on `meta`, arithmetic in place) is lost as before, with
a warning that names the parameter. Pull request 52209 has loaders for single experts of GPT-OSS, beside these copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import bare_copies, deferred_writes, layerwise_reload

patch = Patch(
    __name__,
    affected="vllm>=0.16.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/32133",
        "https://github.com/vllm-project/vllm/pull/52209",
    ),
    opt_out="NRL_DISABLE_VLLM_LAYERWISE_RELOAD_BARE_COPIES_PATCH",
    relies_on=(
        "vllm.model_executor.model_loader.reload.layerwise:make_online_process_loader",
        "vllm.model_executor.model_loader.reload.layerwise:_layerwise_process",
        "vllm.model_executor.model_loader.reload.layerwise:_get_original_loader",
    ),
)


@patch.fix(
    "vllm.model_executor.model_loader.reload.layerwise:initialize_layerwise_reload",
    guard=lambda initialize: mismatch(initialize, parameters="model", attributes="modules restore_layer_on_meta"),
)
def watch_what_is_written(initialize: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that has the model's ``load_weights`` watched when its parameters have lost their memory.

    Args:
        initialize: vLLM's ``initialize_layerwise_reload``.
    """

    def initialize_and_watch(model: Any) -> Any:
        done = initialize(model)
        bare_copies.watch(model)
        return done

    return initialize_and_watch


@patch.fix(
    "vllm.model_executor.model_loader.reload.layerwise:finalize_layerwise_reload",
    guard=mismatch,
)
def stop_watching(finalize: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that puts ``load_weights`` back.

    Args:
        finalize: vLLM's ``finalize_layerwise_reload``.
    """

    # From 0.19.0 on it takes whatever it is given.
    def unwatch_and_finalize(*args: Any, **kwargs: Any) -> Any:
        for model in args[:1] or [kwargs[name] for name in kwargs if name == "model"]:
            bare_copies.unwatch(model)
        return finalize(*args, **kwargs)

    return unwatch_and_finalize


@patch.fix(
    "vllm.model_executor.model_loader.reload.meta:get_numel_loaded",
    guard=lambda count: mismatch(count, parameters="weight_loader args", attributes="copied_numel"),
)
def count_what_was_written(count: Callable[..., Any]) -> Callable[..., Any]:
    """Build a count that knows what was written without a loader, and lets a loader write unseen.

    Args:
        count: vLLM's ``get_numel_loaded``.
    """

    def count_written(weight_loader: Callable[..., Any], args: Any) -> Any:
        if isinstance(args.arguments.get("write"), deferred_writes.Write):
            return args.arguments["counts"], None
        with bare_copies.unwatched():
            return count(weight_loader, args)

    return count_written


@patch.fix(
    "vllm.model_executor.model_loader.weight_utils:default_weight_loader",
    guard=lambda load: mismatch(load, parameters="param loaded_weight", attributes="copy_ size"),
)
def leave_the_default_loader(load: Callable[..., Any]) -> Callable[..., Any]:
    """Build a default loader that writes unseen, since another patch is there for it, unless its weight has no data.

    Args:
        load: vLLM's ``default_weight_loader``.
    """

    def load_unseen(param: Any, loaded_weight: Any) -> Any:
        if getattr(loaded_weight, "is_meta", False):
            return load(param, loaded_weight)
        with bare_copies.unwatched():
            return load(param, loaded_weight)

    return load_unseen


@patch.probe
def copies_are_lost() -> Observation:
    """Copy into both parameters of a layer during a reload, by the real functions."""
    try:
        from vllm.model_executor.model_loader.reload import layerwise  # noqa: F401
    except ImportError:
        return Observation(present=False, evidence={"absent": "vllm.model_executor.model_loader.reload"})
    with layerwise_reload.visible_garbage():
        model = bare_copies.tiny_model()
        bare_copies.reload(model, {"first": 2.0, "last": 3.0})
    seen = layerwise_reload.values(model)
    return Observation(seen != {"first": 2.0, "last": 3.0}, {name: str(value) for name, value in seen.items()})
