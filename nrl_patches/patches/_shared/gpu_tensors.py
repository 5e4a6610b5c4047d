"""How torch sends a CUDA tensor to another process: by an index of its GPU that has the UUID with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nrl_patches import mismatch
from nrl_patches.patches._shared import gpu_index


def differs(rebuild: Any) -> str | None:
    """Return how torch receives or sends tensors otherwise than this patch expects; None if it does not.

    Args:
        rebuild: torch's ``rebuild_cuda_tensor``.
    """
    found = mismatch(rebuild, parameters="storage_device storage_handle", attributes="_new_shared_cuda")
    if found is not None:
        return found
    # By what it uses: releases differ in what else it checks, as 2.11.0 does.
    found = mismatch(rebuild.__globals__.get("reduce_tensor"), attributes="_share_cuda_ rebuild_cuda_tensor")
    return None if found is None else f"has a reduce_tensor beside it that {found}"


def send_uuid(share: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Build a method whose index has the GPU's UUID with it.

    Args:
        share: torch's ``_share_cuda_``.
    """

    def share_with_uuid(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        index, *handles = share(self, *args, **kwargs)
        return (gpu_index.identified(index), *handles)

    return share_with_uuid


def unpickle_uuid(rebuild: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that unpickles an index with its UUID.

    Args:
        rebuild: torch's ``_rebuild_from_type``, which is left to what old releases have pickled, and to
            :class:`~nrl_patches.patches._shared.gpu_index.GpuIndex`.
    """

    def rebuild_with_uuid(func: Any, type: Any, args: Any, dict: Any) -> Any:  # noqa: A002 - torch's
        return gpu_index.unpickled(rebuild(func, type, args, dict), dict)

    return rebuild_with_uuid


def receive_on_own_index(rebuild: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that takes the index that the sender's GPU has in this process.

    Args:
        rebuild: torch's ``rebuild_cuda_tensor``.
    """

    def rebuild_on_own_index(  # noqa: PLR0913, PLR0917 - torch's
        tensor_cls: Any,
        tensor_size: Any,
        tensor_stride: Any,
        tensor_offset: Any,
        storage_cls: Any,
        dtype: Any,
        storage_device: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        index = gpu_index.own_index(storage_device)
        return rebuild(
            tensor_cls, tensor_size, tensor_stride, tensor_offset, storage_cls, dtype, index, *args, **kwargs
        )

    return rebuild_on_own_index
