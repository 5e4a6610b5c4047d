"""Which parts of a layer a layerwise reload has been sent: queries, keys and values; gates and ups; experts."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock
from weakref import WeakSet

from nrl_patches.errors import Problem
from nrl_patches.patches._shared.deferred_writes import UNPROCESSED

if TYPE_CHECKING:
    import torch

PARTS = ("q", "k", "v")
"""Those of the fused projections of an attention."""

EXPERT = {"w1", "w2", "w3"}
"""Those of an expert; some models load fused ones, or several experts at once."""

_warned: WeakSet[torch.nn.Module] = WeakSet()


def warn_of_absent_parts(model: torch.nn.Module) -> None:
    """Warn once of each quantised layer that has been sent some of its parts and not all.

    Args:
        model: A model to which all has been sent that is to be.
    """
    from vllm.model_executor.model_loader.reload import layerwise

    for path, layer in model.named_modules():
        info = layerwise.get_layerwise_info(layer)
        method = type(getattr(layer, "quant_method", None)).__name__
        if not 0 < info.load_numel < (info.load_numel_total or 0) or method in UNPROCESSED or layer in _warned:
            continue
        incomplete = {name: lists for name, *lists in _incomplete(layer, info.loaded_weights)}
        if not incomplete:
            continue
        _warned.add(layer)
        sent, absent = next(iter(incomplete.values()))
        logging.getLogger("nrl_patches").warning(
            Problem(
                f"layerwise reload of {path or type(layer).__name__}",
                expected="all parts of a layer that is processed as a whole, as quantised ones are",
                found=f"{sent} of {', '.join(incomplete)}: without {absent}, which is uninitialised memory now",
                next_step=f"send {absent} in the same reload, or nothing of the layer; ignore this if it is not used",
            )
        )


def _incomplete(layer: Any, loaded: list[tuple[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield each parameter that lacks parts, with what was sent and what was not, in words."""
    linear: dict[str, set[Any]] = defaultdict(set)
    experts: dict[str, set[tuple[int, str]]] = defaultdict(set)
    held = getattr(layer, "_map_global_expert_id_to_local_expert_id", None)  # Other classes count experts differently.
    for name, bound in loaded:
        given = bound.arguments
        if "expert_id" in given and held:
            if str(given.get("shard_id")) in EXPERT and held(given["expert_id"]) != -1:
                experts[name].add((given["expert_id"], given["shard_id"]))
        elif "loaded_shard_id" in given:
            shard = given["loaded_shard_id"]
            linear[name].update(shard if isinstance(shard, (tuple, list)) else (shard,))
    whole = _parts_of(layer)
    for name, parts in linear.items():
        # Subclasses may have identifiers of their own.
        if None not in parts and whole & parts and whole - parts:
            yield name, _words(parts), _words(whole - parts)
    for name, pieces in experts.items():
        # Experts without a gate have no third part.
        needed = layer.local_num_experts * len({kind for _, kind in pieces})
        if len(pieces) < needed:
            yield name, f"{len(pieces)} parts of its experts", f"{needed - len(pieces)} others"


def _words(parts: set[Any]) -> str:
    return ", ".join(sorted(map(str, parts)))


def _parts_of(layer: Any) -> set[Any]:
    from vllm.model_executor.layers import linear

    if isinstance(layer, linear.QKVParallelLinear):
        return {*PARTS}
    if isinstance(layer, linear.MergedColumnParallelLinear):
        return {*range(len(getattr(layer, "output_sizes", ())))}
    return set()


def tiny_layer() -> Any:
    """Make a layer of vLLM's class of fused queries, keys and values, each of one element that is 1.0, quantised.

    Returns:
        The layer, whose method of quantisation, the only part that is made up, changes the sign of what is loaded.
    """
    import torch
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    def load(param: Any, loaded_weight: Any, loaded_shard_id: str) -> None:
        param.data[PARTS.index(loaded_shard_id)].copy_(loaded_weight)

    def process(self: Any, layer: Any) -> None:  # noqa: ARG001 - called so
        layer.weight = torch.nn.Parameter(-layer.weight, requires_grad=False)

    made: Any = linear.QKVParallelLinear.__new__(linear.QKVParallelLinear)
    torch.nn.Module.__init__(made)
    made.weight = torch.nn.Parameter(torch.ones(len(PARTS)), requires_grad=False)
    made.weight.weight_loader = load
    made.update_param_tp_status = lambda: None
    methods = {"create_weights": None, "apply": None, "process_weights_after_loading": process}
    made.quant_method = type("ChangesSign", (QuantizeMethodBase,), methods)()
    return made


@contextmanager
def listening(said: list[str]) -> Iterator[None]:
    """Collect warnings, also of loggers that are silenced or filtered where this runs.

    Args:
        said: Where to.
    """
    with mock.patch.object(logging.Logger, "warning", lambda _, text, *args: said.append(str(text) % args)):
        yield


def reload(layer: Any, *parts: str) -> list[str]:
    """Reload parts of a layer, each with 2.0.

    Args:
        layer: The layer.
        parts: The parts.

    Returns:
        What this package, or vLLM, has warned of meanwhile.
    """
    import torch
    from vllm.model_executor.model_loader.reload import layerwise

    model = torch.nn.Module()
    model.qkv_proj = layer
    said: list[str] = []
    layerwise.record_metadata_for_reloading(model)
    layerwise.initialize_layerwise_reload(model)
    for part in parts:
        layer.weight.weight_loader(layer.weight, torch.tensor(2.0), part)
    with listening(said):
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
    return said
