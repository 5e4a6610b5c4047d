"""The scales of RADIO's blocks: how they are loaded, and how they survive dummy load, level-2 sleep and reloads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from nrl_patches import mismatch

if TYPE_CHECKING:
    import torch

SCALES = ("ls1", "ls2")
ENTRY = re.compile(r"radio_model\.model\.blocks\.(?P<block>\d+)\.(?:ls|layer_scale)(?P<branch>[12])(?:\.\w+)?")


def lend(block: torch.nn.Module) -> None:
    """Register buffers that share the memory of the scales, for level-2 sleep to save and restore.

    Args:
        block: A block of the tower, with the parameters ``ls1`` and ``ls2``; one on the meta device is skipped.
    """
    for name in SCALES:
        scale = block._parameters.get(name)
        if scale is not None and not scale.is_meta:
            block.register_buffer(f"{name}_lent", scale.detach(), persistent=False)


def leave_layerwise_reload(block: torch.nn.Module) -> None:
    """Restore what a layerwise reload has set aside; a block has no other tensors of its own than the scales.

    The reload allocates a layer's tensors again if the stream has any of them, and up to 0.25.1 leaves the others
    uninitialised.

    Args:
        block: A block of the tower; nothing is done unless a reload has put its scales on the meta device.
    """
    if not any(scale is not None and scale.is_meta for scale in map(block._parameters.get, SCALES)):
        return
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    info = get_layerwise_info(block)
    parameters, buffers = info.kernel_tensors or ({}, {})
    if parameters:
        block._parameters.update(parameters)
        block._buffers.update(buffers)
        info.reset()


def make_lenders(init: Callable[..., Any]) -> Callable[..., Any]:
    """Build a constructor whose blocks lend their scales, see :func:`lend`.

    Args:
        init: The constructor of vLLM's ``RadioModel``.
    """

    def init_and_lend(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for block in self.model.encoder.layers:
            lend(block)

    return init_and_lend


def fills(load_weights: Callable[..., Any]) -> str | None:
    """Check that the fill happens in the function itself, in one of the two ways that releases have.

    Args:
        load_weights: The ``load_weights`` of vLLM's dummy loader.

    Returns:
        None if it does, otherwise the difference.
    """
    mismatches = [
        mismatch(load_weights, parameters="self model", attributes=function)
        for function in ("initialize_single_dummy_weight", "initialize_dummy_weights")  # The latter up to 0.29.0.
    ]
    return mismatches[0] if all(mismatches) else None


def spare_scales(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a dummy load after which every scale has the value that it had before.

    Args:
        load_weights: The ``load_weights`` of vLLM's dummy loader.
    """

    def load_weights_but_scales(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # That they are lent distinguishes the scales of RADIO from parameters of other models that are named `ls1`.
        lent = [(block, name) for block in model.modules() for name in SCALES if f"{name}_lent" in block._buffers]
        before = [block._parameters[name].detach().clone() for block, name in lent]
        result = load_weights(self, model, *args, **kwargs)
        for (block, name), value in zip(lent, before, strict=True):
            block._parameters[name].data.copy_(value)
            lend(block)
        return result

    return load_weights_but_scales


def skips_layer_scale(load_weights: Callable[..., Any]) -> str | None:
    """Check that the loader drops ``ls1`` and ``ls2``, as in every release.

    Args:
        load_weights: The ``load_weights`` of vLLM's ``RadioModel``.

    Returns:
        None if it does, otherwise the difference.
    """
    missing = mismatch(load_weights, parameters="self weights", attributes="named_parameters")
    if missing is None and frozenset(SCALES) not in load_weights.__code__.co_consts:
        return "does not skip ls1 and ls2"
    return missing


def write_entries(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader that writes LayerScale itself and leaves the rest to the original.

    Args:
        load_weights: The ``load_weights`` of vLLM's ``RadioModel``.
    """

    def load_layer_scale_too(self: Any, weights: Any) -> set[str]:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        layers = self.model.encoder.layers
        for block in layers:
            leave_layerwise_reload(block)
            # Again: a cast or a copy cuts the buffers off, and up to 0.25.1 a reload makes them persistent.
            lend(block)
        rest: list[tuple[str, torch.Tensor]] = []
        written: set[str] = set()
        stream: Iterable[tuple[str, torch.Tensor]] = weights.items() if isinstance(weights, dict) else weights
        for name, weight in stream:
            entry = ENTRY.fullmatch(name)
            if entry is None or int(entry["block"]) >= len(layers):  # A shortened tower drops the blocks it lacks.
                rest.append((name, weight))
                continue
            own = getattr(layers[int(entry["block"])], f"ls{entry['branch']}")
            getattr(own, "weight_loader", default_weight_loader)(own, weight)
            written.add(f"model.encoder.layers.{entry['block']}.ls{entry['branch']}")
        return set(load_weights(self, rest)) | written

    return load_layer_scale_too
