"""The scales of RADIO's blocks: how they outlast level-2 sleep and a layerwise reload as parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SCALES = ("ls1", "ls2")


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
