"""Layerwise reload drops the last parameter of a layer that has a composed weight loader.

Problem: `get_numel_loaded` (model_loader/reload/meta.py) counts what a loader copies. A composed loader copies twice,
    the weight and then what a function makes of it, so the layer counts as complete one parameter too early, and what
    comes after is taken for excess.
Hit by: refits of Mamba-2 models by `reload_weights` (Nemotron-H, Bamba, Zamba2, Granite 4): `A` has such a loader,
    and the mixer's last parameter, `D`, keeps its old value or turns to garbage. Other tokens, no error.
Fix: no load counts for more elements than its parameter has, as in upstream's fix.
Remove when: no supported release is older than vLLM 0.24.0.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import layerwise_reload

patch = Patch(
    __name__,
    affected="vllm>=0.16.0,<0.24.0",
    upstream=("https://github.com/vllm-project/vllm/pull/44814",),
    opt_out="NRL_DISABLE_VLLM_LAYERWISE_RELOAD_COMPOSED_LOADER_PATCH",
)


@patch.fix(
    "vllm.model_executor.model_loader.reload.meta:get_numel_loaded",
    guard=lambda count: mismatch(count, parameters="weight_loader args", attributes="copied_numel"),
)
def count_no_more_than_there_is(count: Callable[..., Any]) -> Callable[..., Any]:
    """Build a count that does not exceed the size of the parameter.

    Args:
        count: vLLM's ``get_numel_loaded``.
    """

    def count_at_most_all(weight_loader: Callable[..., Any], args: Any) -> tuple[int, object]:
        loaded, returned = count(weight_loader, args)
        size = getattr(args.arguments.get("param"), "numel", None)
        return (loaded if size is None else min(loaded, size())), returned

    return count_at_most_all


@patch.probe
def last_parameter_is_dropped() -> Observation:
    """Send a layer's parameters by the real functions, of which the first has a composed loader."""
    try:
        from vllm.model_executor.model_loader.reload import layerwise  # noqa: F401
    except ImportError:
        return Observation(present=False, evidence={"absent": "vllm.model_executor.model_loader.reload"})
    from vllm.model_executor.model_loader import weight_utils

    negative = weight_utils.composed_weight_loader(weight_utils.default_weight_loader, lambda weight: -weight)
    with layerwise_reload.visible_garbage():
        model = layerwise_reload.layer(first=negative)
        # Without buffers, which no stream sends, the layer would be complete with its parameters.
        model._buffers.clear()
        layerwise_reload.reload(model, {"first": 2.0, "last": 3.0})
    seen = layerwise_reload.values(model)
    return Observation(seen != {"first": -2.0, "last": 3.0}, {name: str(value) for name, value in seen.items()})
