"""What the patches of the dummy load have in common: the fix, and what their probes look at.

The loader fills the tensors of a state dict, so marking a buffer non-persistent for the duration of the fill is the
loader's own way to leave it alone. Nothing is copied or written back, so what the loader does to other tensors in the
same call (materialise, quantise) stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation

if TYPE_CHECKING:
    import torch

CONSTANT = 8.0

UNQUANTIZED = SimpleNamespace(quantization=None)
"""The one field of a model's configuration that a dummy load reads, in vLLM 0.16.0 only."""


@contextmanager
def hidden_constants(model: torch.nn.Module) -> Iterator[None]:
    """Keep the persistent buffers that hold a value out of the state dict.

    Args:
        model: The model, restored when the context is left. A buffer on the meta device or with a NaN holds no value.
    """
    hidden: list[tuple[set[str], str]] = []
    try:
        for module in model.modules():
            names = module._non_persistent_buffers_set
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in names and _has_value(buffer):
                    names.add(name)
                    hidden.append((names, name))
        yield
    finally:
        for names, name in hidden:
            names.discard(name)


def _has_value(buffer: torch.Tensor) -> bool:
    # A meta tensor has no memory yet, and uninitialised memory may hold NaN. Masks are constants with -inf.
    return not buffer.is_meta and not (buffer.is_floating_point() and bool(buffer.float().isnan().any()))


def observe(fill: Callable[[torch.nn.Module], Any]) -> Observation:
    """Fill a module that has one tensor of each kind, and look at its constant.

    Args:
        fill: The dummy load: writes random numbers into the tensors of the module that it is given.

    Returns:
        The defect is present if the persistent buffer was overwritten; the evidence has the value of each tensor.
    """
    import torch

    model = torch.nn.Module()
    model.register_buffer("constant", torch.tensor(CONSTANT))
    model.register_buffer("non_persistent", torch.tensor(5.0), persistent=False)
    model.weight = torch.nn.Parameter(torch.tensor(3.0), requires_grad=False)
    fill(model)
    seen = {name: getattr(model, name).item() for name in ("constant", "non_persistent", "weight")}
    return Observation(seen["constant"] != CONSTANT, seen)
