"""The index of a GPU that is sent along with the GPU's UUID, and what it stands for in the process that gets it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

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
    except (AssertionError, RuntimeError):  # A build without CUDA, or a forked process: torch says so at the tensor.
        return ()


@functools.cache
def _uuids() -> tuple[str, ...]:
    import torch

    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return tuple(str(getattr(each, "uuid", "")) for each in properties)


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


@contextmanager
def seeing(uuids: Sequence[str]) -> Iterator[None]:
    """Let torch report these GPUs, as another process would see them.

    Args:
        uuids: Their UUIDs, by index.
    """
    import torch

    def properties(index: int) -> Any:
        return SimpleNamespace(uuid=uuids[index])

    caches = (identified, _uuids, _warn_once)
    for cached in caches:
        cached.cache_clear()
    try:
        with (
            mock.patch.object(torch.cuda, "get_device_properties", properties),
            mock.patch.object(torch.cuda, "device_count", return_value=len(uuids)),
            mock.patch.object(torch.cuda, "_lazy_init"),
        ):
            yield
    finally:
        for cached in caches:
            cached.cache_clear()


class OnGpu:
    """Stands for the untyped storage of a tensor on a GPU: has memory on the CPU, and answers what the driver would.

    Args:
        storage: The storage on the CPU.
        index: The index of the GPU.
        memory: What opens a storage by its handle.
    """

    def __init__(self, storage: Any, index: int, memory: dict[bytes, Any]) -> None:
        import torch

        self.storage, self.device = storage, torch.device("cuda", index)
        self.handle = b"%x" % storage.data_ptr() if storage.nbytes() else None
        if self.handle is not None:
            memory[self.handle] = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def _share_cuda_(self) -> tuple[Any, ...]:
        return self.device.index, self.handle, self.storage.nbytes(), 0, b"counter", 0, b"event", False


@contextmanager
def cpu_for_gpus(index: Callable[[Any], int | None]) -> Iterator[list[int]]:
    """Let torch share tensors of the CPU as if they were on GPUs, between processes that begin with nothing received.

    Args:
        index: Maps a tensor to the index of its GPU, None if it is to stay on the CPU.

    Yields:
        On which GPUs memory was opened, by index.
    """
    import torch
    from torch.multiprocessing import reductions

    memory: dict[bytes, Any] = {}
    opened: list[int] = []
    storage_of = torch.Tensor._typed_storage

    def typed_storage(self: Any) -> Any:
        storage, found = storage_of(self), index(self)
        if found is not None:
            storage._untyped_storage = OnGpu(storage._untyped_storage, found, memory)
        return storage

    def new_shared(device: int, handle: bytes, *_: Any) -> Any:
        opened.append(device)
        return memory[handle]

    with (
        mock.patch.object(torch.Tensor, "_typed_storage", typed_storage),
        mock.patch.object(reductions, "shared_cache", {}),
        mock.patch.object(torch.UntypedStorage, "_new_shared_cuda", staticmethod(new_shared)),
        mock.patch.object(torch.UntypedStorage, "_release_ipc_counter_cuda", staticmethod(mock.Mock())),
    ):
        yield opened
