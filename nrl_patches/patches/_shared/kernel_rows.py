"""Kernels that keep the sequences of packed rows apart themselves.

They take `seq_idx`, the index of each token's sequence. Whether a mixer calls them is read from its functions:
upstream's own drop the argument, in silence in most releases, and that a package is installed does not mean that it is
used.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_OF_CONVOLUTION = ("causal_conv1d_fn",)
_OF_SCAN = (*_OF_CONVOLUTION, "mamba2_chunk_scan", "mamba2_split_conv1d_scan_combined")
"""The functions of transformers 5.15.0 and newer that a mixer without a cache calls."""


def take_seq_idx(mixer: Any, forward: Callable[..., Any], hidden: torch.Tensor) -> bool:
    """Whether a mixer that is given `seq_idx` hands it to kernels, and they take it.

    Args:
        mixer: The mixer.
        forward: Upstream's forward of it.
        hidden: What it is given, ``(batch, length, width)``.
    """
    names = inspect.signature(forward).parameters
    module = next(kind.__module__ for kind in type(mixer).__mro__ if kind.__module__.startswith("transformers."))
    if not is_on_gpu(hidden) or names.keys().isdisjoint({"seq_idx", "kwargs"}):
        return False
    # Other activations are not in the kernel: a plain convolution comes before them.
    if getattr(mixer, "activation", "silu") not in {"silu", "swish"}:
        return False
    place = vars(sys.modules[module])
    if "is_fast_path_available" in place:
        # Before 5.15.0 what is in `kwargs` goes no further.
        return "seq_idx" in names and bool(place["is_fast_path_available"])
    functions = _OF_SCAN if hasattr(mixer, "A_log") else _OF_CONVOLUTION
    return all(_takes_it(place.get(name)) for name in functions)


def is_on_gpu(hidden: torch.Tensor) -> bool:
    """Whether kernels can read a tensor.

    Args:
        hidden: The tensor.
    """
    return bool(hidden.is_cuda)


def _takes_it(function: Any) -> bool:
    """Whether a function that transformers has in front of a kernel calls one that takes `seq_idx`."""
    plain = getattr(function, "__wrapped__", None)
    if plain is None or not inspect.isfunction(function):
        return False
    kernel = inspect.getclosurevars(function).nonlocals.get("implementation")
    return kernel is not None and kernel is not plain and "seq_idx" in inspect.signature(kernel).parameters


def seq_idx(bounds: tuple[tuple[int, ...], ...], hidden: torch.Tensor) -> torch.Tensor:
    """Return the index of each token's sequence, ``(batch, length)`` in int32.

    Args:
        bounds: For each row, where its sequences begin, and its length.
        hidden: What is packed, ``(batch, length, width)``.
    """
    import torch

    order = torch.arange(hidden.shape[1], device=hidden.device)
    begins = (torch.tensor(row[1:-1], dtype=order.dtype, device=hidden.device) for row in bounds)
    return torch.stack([torch.bucketize(order, inner, right=True) for inner in begins]).to(torch.int32)
