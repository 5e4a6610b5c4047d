"""Tensors of the CPU in place of those on GPUs, for what torch does when it sends them to another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from nrl_patches.patches._shared import gpu_index


@contextmanager
def seeing(uuids: Sequence[str]) -> Iterator[None]:
    """Let torch report these GPUs, as another process would see them.

    Args:
        uuids: Their UUIDs, by index.
    """
    import torch

    def properties(index: int) -> Any:
        return SimpleNamespace(uuid=uuids[index])

    gpu_index.forget()
    try:
        with (
            mock.patch.object(torch.cuda, "get_device_properties", properties),
            mock.patch.object(torch.cuda, "device_count", return_value=len(uuids)),
            mock.patch.object(torch.cuda, "_lazy_init"),
        ):
            yield
    finally:
        gpu_index.forget()


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
def sharing(index: Callable[[Any], int | None]) -> Iterator[list[int]]:
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
