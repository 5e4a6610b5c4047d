"""The index of a GPU that is sent along with the GPU's UUID, and what it stands for in the process that gets it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from nrl_patches.errors import Problem


class GpuIndex(int):
    """The index that a GPU has in the process that sends it: an ordinary int to whoever does not ask for more.

    Attributes:
        uuid: The UUID of the GPU.
    """

    uuid: str

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Without the patch, and without this package, torch's function calls int and drops the UUID; with it, it makes
        # one of these again. Restricted unpicklers (TensorRT-LLM, SGLang) let through int and what is torch's.
        from torch._tensor import Tensor, _rebuild_from_type

        return _rebuild_from_type, (int, Tensor, (int(self),), {"uuid": self.uuid})


def with_uuid(index: int, uuid: str) -> GpuIndex:
    """Return an index with a UUID.

    Args:
        index: The index.
        uuid: The UUID.
    """
    made = GpuIndex(index)
    made.uuid = uuid
    return made


def unpickled(made: Any, state: Any) -> Any:
    """Return an index with the UUID that was pickled with it, and anything else as it is.

    Args:
        made: What ``_rebuild_from_type`` returned.
        state: The attributes that were pickled with it.
    """
    return with_uuid(made, state["uuid"]) if type(made) is int else made


@functools.cache
def identified(index: int) -> int:
    """Return the index of a GPU of this process with its UUID; alone where that does not tell the GPU from others.

    Args:
        index: The index.
    """
    (uuid,) = visible()[index : index + 1] or ("",)
    return with_uuid(index, uuid) if _is_unique(uuid) else index


def own_index(index: int) -> int:
    """Return the index that a GPU has in this process; the one given where nobody knows or the GPU is not visible.

    Args:
        index: The sender's, or one that somebody has set since, which is a plain int and counts as it is.
    """
    if not isinstance(index, GpuIndex):
        return index
    if _is_unique(index.uuid):
        return visible().index(index.uuid)
    if visible():
        _warn_once(index, index.uuid)
    return int(index)


def visible() -> tuple[str, ...]:
    """Return the UUIDs of the GPUs that this process sees; empty strings where torch has none, nothing without CUDA."""
    try:
        return _uuids()
    except (AssertionError, RuntimeError):  # As in a forked process; torch says so at the tensor.
        return ()


@functools.cache
def _uuids() -> tuple[str, ...]:
    import torch

    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(str(getattr(each, "uuid", "")) for each in properties)


def forget() -> None:
    """Ask torch again which GPUs there are, and warn again."""
    for cached in (identified, _uuids, _warn_once):
        cached.cache_clear()


def _is_unique(uuid: str) -> bool:
    return bool(uuid) and visible().count(uuid) == 1


@functools.cache
def _warn_once(index: int, uuid: str) -> None:
    gpus = visible()
    here = f"GPU {gpus[index]}" if index < len(gpus) else "no GPU"
    logging.getLogger("nrl_patches").warning(
        Problem(
            "torch.cuda_ipc_device_index",
            expected=f"GPU {uuid}, on which a tensor was sent, once among those that this process sees",
            found=f"{', '.join(gpus)}; the tensor says cuda:{int(index)} as at its sender, which is {here} here",
            next_step="let CUDA_VISIBLE_DEVICES of the receiver have that GPU",
        )
    )
