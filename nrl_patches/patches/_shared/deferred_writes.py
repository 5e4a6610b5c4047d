"""What was written into a tensor that layerwise reload holds on `meta`, and is to be written when it has memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nrl_patches.errors import Problem
from nrl_patches.patches._shared import direct_loader

if TYPE_CHECKING:
    import torch

UNPROCESSED = ("NoneType", "UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")
"""The classes of a layer's method of quantisation that leave its weights as they were loaded."""

_WRAPPED = "_nrl_patches_wrapped"
"""The attribute of a loader that repeats writes: the parameter's own loader."""


@dataclass(frozen=True)
class Write:
    """What a model wrote into a tensor without memory, to be repeated where there is some.

    Attributes:
        function: The method of ``torch.Tensor``.
        key: What it is called with before the value: the index of an assignment.
        size: The size of the view that was written to.
        stride: Its strides.
        offset: Where it begins in the storage, in elements of its dtype.
        dtype: Its dtype.
    """

    function: Callable[..., Any]
    key: tuple[Any, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """What tells it from writes to other elements."""
        return f"{self.key} {self.size} {self.stride} {self.offset} {self.dtype}"


def write_again(param: torch.Tensor, loaded_weight: Any, write: Write, counts: int = 0) -> None:  # noqa: ARG001
    """Write into a parameter what was written into the one without memory; a weight loader of layerwise reload.

    Args:
        param: The parameter.
        loaded_weight: The weight, or the number.
        write: How it was written.
        counts: For how many elements it counts, which is asked of the arguments.
    """
    import torch

    view = torch.empty(0, dtype=write.dtype, device=param.device)
    view = view.set_(param.untyped_storage(), write.offset, write.size, write.stride)
    write.function(view, *write.key, loaded_weight)


@dataclass
class Awaited:
    """A tensor that layerwise reload holds on `meta`.

    Attributes:
        layer: The module that has it.
        name: Its name there.
        path: Its name in the model.
        tensor: It itself.
        written: The names of the writes so far; a number has none.
        counted: How many elements of it have been counted as loaded.
    """

    layer: torch.nn.Module
    name: str
    path: str
    tensor: Any
    written: set[str] = field(default_factory=set)
    counted: int = 0

    @property
    def current(self) -> Any:
        """What the layer has under the name: this tensor, as long as the layer is not complete."""
        return getattr(self.layer, self.name, None)

    def take(self, value: Any, write: Write, elements: int) -> None:
        """Have a write repeated when the layer gets its memory, or repeat it at once in a layer that has it.

        Args:
            value: The weight, or the number.
            write: How it was written.
            elements: How many elements were written.
        """
        if self.current is self.tensor:
            self._defer(value, write, elements)
        elif self._is_as_loaded():
            write_again(self.current, value, write)
        else:
            warn(self.path, "a weight that came when its layer had been given as many elements as it has")

    def _defer(self, value: Any, write: Write, elements: int) -> None:
        from vllm.model_executor.model_loader.reload import layerwise

        counts = 0
        name = write.name if is_tensor(value) else ""
        # What is filled with a number is usually written again, in part.
        if name and name not in self.written:
            room = getattr(self.tensor, "weight_loader_numel", self.tensor.numel()) - self.counted
            counts = max(0, min(room, elements))
            self.counted += counts
        self.written.add(name)
        online = self.tensor.weight_loader
        if not hasattr(online.__wrapped__, _WRAPPED):
            online.__wrapped__ = _by_kind(online.__wrapped__)  # What loads it when there is memory.
        self.tensor.weight_loader = write_again
        try:
            defer = layerwise.make_online_process_loader(self.layer, self.name)
        finally:
            self.tensor.weight_loader = online
        defer(self.tensor, value, write, counts)

    def _is_as_loaded(self) -> bool:
        def form(tensor: Any) -> tuple[Any, ...]:
            return tensor.dtype, tensor.size(), tensor.stride()

        now = self.current
        kept = type(getattr(self.layer, "quant_method", None)).__name__ in UNPROCESSED
        return kept and is_tensor(now) and not now.is_meta and form(now) == form(self.tensor)


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor.

    Args:
        value: The value.
    """
    import torch

    return isinstance(value, torch.Tensor)


def _by_kind(own: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader that repeats what was written without one, and leaves all else to the parameter's own."""

    @functools.wraps(own)
    def load_by_kind(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, Write) for value in args[2:]):
            return write_again(*args)
        if any(hasattr(value, direct_loader.MARK) for value in args[1:2]):
            from vllm.model_executor.model_loader.weight_utils import default_weight_loader

            return default_weight_loader(*args[:2])
        return own(*args, **kwargs)

    setattr(load_by_kind, _WRAPPED, own)
    return load_by_kind


@functools.cache
def warn(path: str, found: str) -> None:
    """Say once of a parameter that it keeps its value.

    Args:
        path: Its name.
        found: What was to be written, or how.
    """
    logging.getLogger("nrl_patches").warning(
        Problem(
            f"layerwise reload of {path}",
            expected="a weight that is handed to its weight_loader, or to copy_",
            found=f"{found}: what was sent is lost",
            next_step="refit this model by load_weights alone, without layerwise reload (reload_weights)",
        )
    )
