"""Which weights of a vLLM engine no refit has written since its dummy load; asked for, and never on by itself.

An engine that starts with `load_format="dummy"` is filled with noise, and what the trainer's stream does not carry
stays noise: no error, other tokens. What is in memory bit for bit as before the refit was not written. Both functions
take a worker or a model:

    llm.collective_rpc(refit.remember)          # after the start, or after waking from sleep level 2
    ...                                         # the refit
    for lines in llm.collective_rpc(refit.unwritten):
        print(*lines, sep=", ")

Where functions cannot be sent, ``LLM(worker_extension_cls="nrl_patches.refit.WorkerExtension")`` offers them by name.
This module imports torch only when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nrl_patches.errors import PatchError, Problem

if TYPE_CHECKING:
    import torch

__all__ = ["WorkerExtension", "remember", "unwritten"]

BLOCKS = 64
"""Into how many blocks of rows a tensor is cut at most, so that one that was written in part is noticed."""

_remembered: WeakKeyDictionary[torch.nn.Module, dict[str, torch.Tensor]] = WeakKeyDictionary()


def remember(worker_or_model: Any) -> int:
    """Remember what the weights of a model are now, by a checksum of each block of rows.

    Reads every parameter and every persistent buffer once, and keeps at most 512 bytes of each on its device.

    Args:
        worker_or_model: A worker of vLLM, whose ``model_runner`` has the model, or the model itself.

    Returns:
        How many tensors were read.
    """
    model = _model(worker_or_model)
    _remembered[model] = {name: _checksums(tensor) for name, tensor in _weights(model)}
    return len(_remembered[model])


def unwritten(worker_or_model: Any) -> list[str]:
    """Say of which weights some block of rows is bit for bit what it was when :func:`remember` was called.

    A weight that was written with what it already held counts as unwritten, so a refit should be checked that follows
    a dummy load. A tensor that has another shape than then was written.

    Args:
        worker_or_model: As for :func:`remember`.

    Returns:
        One line per weight, in the order of the model; none if all were written.

    Raises:
        PatchError: Nothing was remembered of this model.
    """
    model = _model(worker_or_model)
    if model not in _remembered:
        raise PatchError(
            Problem(
                "nrl_patches.refit.unwritten",
                expected="a model whose weights were remembered before the refit",
                found=f"a {type(model).__name__} of which nothing is remembered",
                next_step="call nrl_patches.refit.remember after the dummy load",
            )
        )
    buffers = {name for name, _ in model.named_buffers()}
    lines = []
    for name, tensor in _weights(model):
        before, now = _remembered[model].get(name), _checksums(tensor)
        if before is None or before.shape != now.shape:
            continue
        same = (before == now).tolist()
        if any(same):
            kind = " (a buffer: a constant, or missing in the stream)" if name in buffers else ""
            lines.append(f"{name}: {_describe(same, _rows(tensor))}{kind}")
    return lines


class WorkerExtension:
    """What vLLM adds to its workers by ``worker_extension_cls``, to be called by ``collective_rpc``."""

    def nrl_patches_remember_weights(self) -> int:
        """Call :func:`remember` on this worker.

        Returns:
            How many tensors were read.
        """
        return remember(self)

    def nrl_patches_unwritten_weights(self) -> list[str]:
        """Call :func:`unwritten` on this worker.

        Returns:
            One line per weight.
        """
        return unwritten(self)


def _model(worker_or_model: Any) -> torch.nn.Module:
    runner = getattr(worker_or_model, "model_runner", None)
    model: torch.nn.Module = worker_or_model if runner is None else runner.get_model()
    return model


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict(keep_vars=True).items():
        # What is extra state of a module, lies on the device `meta` or is empty has no memory to be written.
        if hasattr(tensor, "untyped_storage") and not tensor.is_meta and tensor.numel():
            yield name, tensor


def _rows(tensor: torch.Tensor) -> int:
    return tensor.shape[0] if tensor.dim() else 1


def _checksums(tensor: torch.Tensor) -> torch.Tensor:
    import torch  # noqa: PLC0415 - see the module docstring

    # As integers, since NaN is unequal to itself and sums of floats lose bits.
    plain = tensor.detach().reshape(_rows(tensor), -1).contiguous().view(torch.uint8)
    sizes = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    words = next(sizes[n] for n in sizes if plain.shape[1] % n == 0 and plain.storage_offset() % n == 0)
    blocks = [block.flatten() for block in plain.view(words).tensor_split(min(BLOCKS, len(plain)))]
    # The second sum tells one order of the same values from another.
    sums = [(block.sum(dtype=torch.int64), block[: len(block) // 2].sum(dtype=torch.int64)) for block in blocks]
    return torch.stack([whole * 31 + half for whole, half in sums])


def _describe(same: list[bool], rows: int) -> str:
    if all(same):
        return "not written"
    # tensor_split gives the first blocks one row more, where they do not come out even.
    whole, more = divmod(rows, len(same))
    starts = [index * whole + min(index, more) for index in range(len(same) + 1)]
    count = sum(starts[i + 1] - starts[i] for i, unchanged in enumerate(same) if unchanged)
    first = same.index(True)
    return f"{count} of {rows} rows not written, the first of them row {starts[first]}"
