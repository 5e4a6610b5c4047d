"""Weights that a model hands to vLLM's default loader itself while layerwise reload holds its parameters on `meta`."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MARK = "_nrl_patches_direct"
"""The attribute of a weight that was handed to the default loader: whether its parameter has been sent one before."""

_counting = threading.local()


def hand_over(param: Any, weight: Any, default: Callable[..., Any]) -> None:
    """Give a weight to layerwise reload, if it is that which waits for it, with a mark that says by which loader.

    What layerwise reload could not load is left alone: a weight without data, as of a model that has moved it to the
    device of the parameter, and one whose parameter has a loader of its own that takes more than a weight.

    Args:
        param: The parameter, or whatever else the default loader was called with.
        weight: The weight.
        default: vLLM's ``default_weight_loader``.
    """
    online: Any = getattr(param, "weight_loader", None)
    if getattr(online, "__name__", None) != "online_process_loader" or not param.is_meta or weight.is_meta:
        return
    if getattr(_counting, "on", False):  # Layerwise reload itself asks how much the parameter's loader loads.
        return
    outer = inspect.getclosurevars(online).nonlocals
    try:
        if outer["loader_signature"].bind(param, weight).arguments.get("param") is not param:
            return
    except TypeError:
        return
    own = outer["original_loader"]
    if online.__wrapped__ is own:  # Which is what layerwise reload takes when the parameter has memory.
        online.__wrapped__ = _by_mark(own, default)
    marked = weight.detach()
    setattr(marked, MARK, any(name == outer["param_name"] for name, _ in outer["info"].loaded_weights))
    online(param, marked)


def _by_mark(own: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader that leaves to the default one what was handed to that."""

    def load_as_asked(*args: Any, **kwargs: Any) -> Any:
        return default(*args[:2]) if any(hasattr(weight, MARK) for weight in args[1:2]) else own(*args, **kwargs)

    return load_as_asked


def count(counted: Callable[..., Any], loader: Callable[..., Any], args: Any, default: Callable[..., Any]) -> Any:
    """Count what is loaded, a marked weight by the default loader, and only the first of several.

    Args:
        counted: vLLM's ``get_numel_loaded``.
        loader: The parameter's own loader.
        args: What it is called with.
        default: vLLM's ``default_weight_loader``.

    Returns:
        How many elements, and what the loader returned.
    """
    marks = [getattr(value, MARK) for value in args.arguments.values() if hasattr(value, MARK)]
    before = getattr(_counting, "on", False)
    _counting.on = True
    try:
        loaded, returned = counted((lambda *call, **_: default(*call[:2])) if marks else loader, args)
    finally:
        _counting.on = before
    return (0 if any(marks) else loaded), returned


def reload(model: torch.nn.Module, *streams: dict[str, float]) -> None:
    """Reload a model by each stream in turn, by a ``load_weights`` that calls vLLM's default loader itself.

    Args:
        model: The model.
        streams: What each sends: a value for all elements of a parameter, by the parameter's name.
    """
    import torch
    from vllm.model_executor.model_loader import weight_utils
    from vllm.model_executor.model_loader.reload import layerwise

    layerwise.record_metadata_for_reloading(model)
    for stream in streams:
        layerwise.initialize_layerwise_reload(model)
        weights: dict[str, Any] = dict(model.named_parameters())
        for name, value in stream.items():
            with torch.no_grad():
                weight_utils.default_weight_loader(weights[name], torch.full(weights[name].shape, value))
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
