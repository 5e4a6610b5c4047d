"""Kernels that keep the sequences of packed rows apart themselves.

They take `seq_idx`, the index of each token's sequence, or `cu_seqlens`. Whether a mixer calls them is read from its
functions: upstream's own drop the arguments, in silence in most releases, and that a package is installed does not mean
that it is used. Some mixers call kernels that take them, and tell these of no sequences.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Collection
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

_OF_CONVOLUTION = ("causal_conv1d_fn",)
_OF_SCAN = (*_OF_CONVOLUTION, "mamba2_chunk_scan", "mamba2_split_conv1d_scan_combined")
"""The functions of transformers 5.15.0 and newer that a mixer without a cache calls."""
_OF_OLDER_SCAN = (*_OF_CONVOLUTION, "mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined")
"""Those of older releases, which are the kernels themselves."""


def by_kernels(
    run: Callable[..., Any],
    names: Collection[str],
    mixer: Any,
    hidden: torch.Tensor,
    bounds: tuple[tuple[int, ...], ...],
) -> Any:
    """Run a mixer without a cache on packed rows as they are, if its kernels can keep their sequences apart.

    Args:
        run: Runs upstream's forward of a mixer; takes more arguments for it by keyword.
        names: Those of the parameters of that forward.
        mixer: The mixer.
        hidden: What it is given, ``(batch, length, width)``.
        bounds: For each row, where its sequences begin, and its length.

    Returns:
        What it returns; None if its kernels cannot.
    """
    module = next(kind.__module__ for kind in type(mixer).__mro__ if kind.__module__.startswith("transformers."))
    # Other activations are not in the kernel: a plain convolution comes before them.
    if not is_on_gpu(hidden) or getattr(mixer, "activation", "silu") not in {"silu", "swish"}:
        return None
    place = vars(sys.modules[module])
    if "is_fast_path_available" not in place:
        functions = _OF_SCAN if hasattr(mixer, "A_log") else _OF_CONVOLUTION
        told = "seq_idx" in names or "kwargs" in names
        told = told and all(takes(place.get(name), "seq_idx") for name in functions)
        return run(mixer, seq_idx=seq_idx(bounds, hidden.device)) if told else None
    if not place["is_fast_path_available"]:
        return None
    # Before 5.15.0 what is in `kwargs` goes no further.
    if "seq_idx" in names:
        return run(mixer, seq_idx=seq_idx(bounds, hidden.device))
    return _told(run, mixer, seq_idx(bounds, hidden.device))


def _told(run: Callable[..., Any], mixer: Any, index: torch.Tensor) -> Any:
    """Run a mixer that tells its kernels of no sequences, so that these are told."""
    forward = getattr(mixer, "cuda_kernels_forward", None)
    function = getattr(forward, "__func__", None)
    # Another party's may call others.
    if not isinstance(function, FunctionType) or function.__closure__ or hasattr(function, "__wrapped__"):
        return None
    names = _OF_OLDER_SCAN if hasattr(mixer, "A_log") else _OF_CONVOLUTION
    kernels = {name: function.__globals__.get(name) for name in names if name in function.__code__.co_names}
    if len(kernels) < len(names) or not all(takes(kernel, "seq_idx") for kernel in kernels.values()):
        return None

    def tell(kernel: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: kernel(*args, **kwargs | {"seq_idx": index})

    told = function.__globals__ | {name: tell(kernel) for name, kernel in kernels.items()}
    apart = FunctionType(function.__code__, told, function.__name__, function.__defaults__)
    apart.__kwdefaults__ = function.__kwdefaults__
    called: list[bool] = []

    def forward_apart(*args: Any, **kwargs: Any) -> Any:
        called.append(True)
        return apart(mixer, *args, **kwargs)

    # The mixer itself may be running in another thread.
    twin = object.__new__(type(mixer))
    vars(twin).update(vars(mixer), cuda_kernels_forward=forward_apart)
    found = run(twin)
    return found if called else None


def is_on_gpu(hidden: torch.Tensor) -> bool:
    """Whether kernels can read a tensor.

    Args:
        hidden: The tensor.
    """
    return bool(hidden.is_cuda)


def takes(function: Any, name: str) -> bool:
    """Whether a function that a mixer calls is a kernel, or transformers' wrapper of one, that takes an argument.

    Args:
        function: The function; None if there is none.
        name: The name of the argument.
    """
    kernel = _kernel(function)
    return kernel is not None and name in _parameters(kernel)


def _kernel(function: Any) -> Callable[..., Any] | None:
    if not (getattr(function, "__module__", None) or "").startswith("transformers."):
        return cast("Callable[..., Any] | None", function)
    plain = getattr(function, "__wrapped__", None)
    if plain is None or not inspect.isfunction(function):
        return None
    kernel = inspect.getclosurevars(function).nonlocals.get("implementation")
    return None if kernel is plain else kernel


@functools.lru_cache(maxsize=32)
def _parameters(kernel: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(kernel).parameters)
    except ValueError:  # One that is compiled tells of none.
        return frozenset()


# Each layer is told of the same rows.
@functools.lru_cache(maxsize=1)
def seq_idx(bounds: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """Return the index of each token's sequence, ``(batch, length)`` in int32.

    Args:
        bounds: For each row, where its sequences begin, and its length.
        device: Where it is to be.
    """
    import torch

    # The backward pass of another step may read it.
    with torch.inference_mode(mode=False):
        rows = [torch.arange(len(row) - 1).repeat_interleave(torch.tensor(row).diff()) for row in bounds]
        return torch.stack(rows).to(device, torch.int32)


class _Lengths:
    """Where sequences begin in flattened rows, and which one is the last of each row: of the index that was last."""

    kept: tuple[Any, ...] = (lambda: None,)

    def of(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``cu_seqlens`` and the number of the last sequence of each row.

        Args:
            index: The index in its row of each token's sequence, ``(batch, length)``.
        """
        import torch

        kept = self.kept
        if kept[0]() is not index:
            with torch.inference_mode(mode=False):
                begins = torch.nn.functional.pad(index.diff() != 0, (1, 0), value=True)
                ends = torch.nn.functional.pad(begins.flatten().nonzero().flatten(), (0, 1), value=begins.numel())
                last = begins.sum(-1).cumsum(0) - 1
            self.kept = kept = weakref.ref(index), ends, last
        return kept[1], kept[2]


_lengths = _Lengths()


def by_lengths(rule: Callable[..., Any], index: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Call a delta rule's kernel on packed rows, flattened to one as `cu_seqlens` wants it.

    Args:
        rule: The kernel, which takes `cu_seqlens`.
        index: The index in its row of each token's sequence, ``(batch, length)``.
        args: Its arguments, without an initial state. Those of each token are ``(batch, length, ...)``.
        kwargs: More of them.

    Returns:
        What it returns: the output, ``(batch, length, ...)``, and the state after the last sequence of each row, or
        None.
    """
    import torch

    ends, last = _lengths.of(index)

    def flat(given: Any) -> Any:
        is_of_tokens = isinstance(given, torch.Tensor) and given.shape[:2] == index.shape
        return given.flatten(0, 1)[None] if is_of_tokens else given

    flattened = {name: flat(given) for name, given in kwargs.items()}
    output, state = rule(*map(flat, args), **flattened | {"cu_seqlens": ends})
    return output.view(*index.shape, *output.shape[2:]), None if state is None else state[last]
