"""What a refit by layerwise reload does not send turns to garbage in each layer that it sends something to.

Problem: `_layerwise_process` (model_loader/reload/layerwise.py) rebuilds such a layer in uninitialised memory, loads
    what was sent, and copies all of its tensors over the ones in use, those that were not sent included.
Hit by: `reload_weights` and `/update_weights` of RL frameworks (NeMo RL, verl), also of models that were loaded from
    disk: a Gemma 4 router's `root_size` up to 0.25.1, Mamba's `conv_weights` up to 0.21.0, XIELU's `beta` and `eps`
    (Apertus) and statistics of batch norms if only parameters are sent, keys and values if only queries are. Other
    tokens, no error.
Fix: what was not sent starts from the values in use, if the tensor has kept its shape and dtype.
Remove when: vLLM keeps them; from 0.26.0 on it does so for buffers that are not persistent.

A layer that is sent nothing, or all, is reloaded as without the patch. In a quantised layer the values in use have been
through `process_weights_after_loading`, so there a tensor that is sent in part is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import layerwise_reload

if TYPE_CHECKING:
    import torch

patch = Patch(
    __name__,
    affected="vllm>=0.16.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/44371",
        "https://github.com/vllm-project/vllm/pull/42481",
    ),
    opt_out="NRL_DISABLE_VLLM_LAYERWISE_RELOAD_UNSENT_TENSORS_PATCH",
    relies_on=(
        "vllm.model_executor.model_loader.reload.layerwise:_layerwise_process",
        "vllm.model_executor.model_loader.reload.layerwise:get_layerwise_info",
    ),
)

UNQUANTIZED = ("NoneType", "UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")
"""The classes of a layer's method of quantisation that leave its weights as they were sent."""


@patch.fix(
    "vllm.model_executor.model_loader.reload.meta:materialize_layer",
    guard=lambda materialize: mismatch(
        materialize, parameters="layer", attributes="get_layer_tensors materialize_meta_tensor"
    ),
)
def start_from_values_in_use(materialize: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that materialises a layer with what is in use in place of what was not sent.

    Args:
        materialize: vLLM's ``materialize_layer``.
    """

    def materialize_with_values(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        info = get_layerwise_info(layer)
        before = {**layer._parameters, **layer._buffers}
        done = materialize(layer, *args, **kwargs)
        in_use = {name: t for tensors in info.kernel_tensors or () for name, t in tensors.items()}
        whole = {name for name, _ in info.loaded_weights}
        if type(getattr(layer, "quant_method", None)).__name__ in UNQUANTIZED:
            # How much of each was sent is not counted, only how much of all of them.
            whole = whole if info.load_numel >= sum(before[name].numel() for name in whole) else set()
        for name, tensor in {**layer._parameters, **layer._buffers}.items():
            old = in_use.get(name)
            if tensor is None or tensor is before[name] or name in whole or old is None:
                continue
            if old.shape == tensor.shape and old.dtype == tensor.dtype:
                tensor.data.copy_(old.data)
        return done

    return materialize_with_values


@patch.probe
def unsent_tensors_turn_to_garbage() -> Observation:
    """Send one of two parameters to a layer, twice, by the real functions; no model and no compiled operator."""
    try:
        from vllm.model_executor.model_loader.reload import layerwise  # noqa: F401
    except ImportError:
        return Observation(present=False, evidence={"absent": "vllm.model_executor.model_loader.reload"})
    with layerwise_reload.visible_garbage():
        model = layerwise_reload.layer()
        layerwise_reload.reload(model, {"first": 2.0}, {"first": 3.0})
    seen = layerwise_reload.values(model)
    expected = {"first": 3.0, "last": 1.0, "constant": 8.0, "derived": 5.0}
    return Observation(seen != expected, {name: str(value) for name, value in seen.items()})
