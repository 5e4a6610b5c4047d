"""Weights that a model writes into its parameters itself while layerwise reload holds them on `meta`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nrl_patches.patches._shared import layerwise_reload
from nrl_patches.patches._shared.deferred_writes import Awaited, Write, is_tensor, warn

if TYPE_CHECKING:
    import torch

ORIGIN = "_nrl_patches_origin"
"""The attribute of a weight that was moved to `meta`: the weight as it was."""

_here = threading.local()


class Watch:
    """The tensors of a model that layerwise reload awaits, and what is written into them.

    Attributes:
        tensors: Them, by the storage of each. It keeps them alive, so no other storage takes such an address.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        from torch.nn.parameter import is_lazy

        self.tensors = {
            _storage(tensor): Awaited(layer, name, f"{path}.{name}".lstrip("."), tensor)
            for path, layer in model.named_modules()
            for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]
            if tensor is not None and not is_lazy(tensor) and _is_deferred(tensor)
        }
        self.tensors.pop(None, None)
        self._rest = list(self.tensors.values())

    def is_over(self) -> bool:
        """Return whether nothing is waited for any more, which need not have been told by a finalisation."""
        while self._rest and self._rest[-1].current is not self._rest[-1].tensor:
            self._rest.pop()
        return not self._rest

    def finish(self) -> None:
        """Name what was given numbers in a layer that nothing was loaded into, which gets its old tensors back."""
        from vllm.model_executor.model_loader.reload import layerwise

        for awaited in self.tensors.values():
            if awaited.written == {""} and layerwise.get_layerwise_info(awaited.layer).load_numel == 0:
                warn(awaited.path, "a number")

    def see(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of what a function has written, if that was into one of the tensors.

        Args:
            function: A method of ``torch.Tensor`` that writes in place.
            args: Its arguments.
            kwargs: Its keyword arguments.
        """
        target: Any = args[0] if args else None
        if not is_tensor(target) or not target.is_meta:
            return
        awaited = self.tensors.get(_storage(target))
        # A weight transfer that only records what would be loaded has put loaders of its own into their place.
        if awaited is None or not _is_deferred(awaited.tensor):
            return
        parsed = _parse(function, args[1:], kwargs)
        if parsed is None:
            warn(awaited.path, f"Tensor.{function.__name__}")
            return
        function, *key, value = parsed
        value = getattr(value, ORIGIN, value)
        if is_tensor(value) and value.is_meta:
            warn(awaited.path, "a weight that was computed on the parameter's device, where it has no data")
            return
        place = tuple(target.size()), target.stride(), target.storage_offset(), target.dtype
        elements = value.numel() if key and is_tensor(value) else target.numel()
        awaited.take(value.detach() if is_tensor(value) else value, Write(function, tuple(key), *place), elements)


def _storage(tensor: Any) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, ValueError):  # Tensors that wrap others have none.
        return None


def _is_deferred(tensor: Any) -> bool:
    return tensor.is_meta and getattr(getattr(tensor, "weight_loader", None), "__name__", "") == "online_process_loader"


def _parse(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return how to write that again: a function, the index of an assignment, the value; None for what cannot be."""
    import torch

    if function == torch.Tensor.__setitem__:
        return (function, *args)
    if function == torch.Tensor.zero_:
        return torch.Tensor.fill_, 0
    if function in (torch.Tensor.copy_, torch.Tensor.fill_):
        return function, [*args, *(kwargs[name] for name in ("other", "value") if name in kwargs)][0]
    return None


@contextmanager
def unwatched() -> Iterator[None]:
    """Let writes be, since layerwise reload has been told of them, or another patch tells it."""
    before = getattr(_here, "unwatched", False)
    _here.unwatched = True
    try:
        yield
    finally:
        _here.unwatched = before


@functools.cache
def _mode() -> Any:
    """Return the class of a mode that sees what is written; once, when torch is there."""
    import torch
    from torch.overrides import TorchFunctionMode

    harmless = {"requires_grad_", "share_memory_", "detach_"}
    names = {name for name in dir(torch.Tensor) if name.endswith("_") and name[0] != "_"} - harmless
    operators = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
    names |= {f"__i{name}__" for name in operators} & {*dir(torch.Tensor)}
    writes = {getattr(torch.Tensor, name) for name in names | {"__setitem__"}}
    moves = {torch.Tensor.to}

    class SeesWrites(TorchFunctionMode):  # type: ignore[misc]
        def __init__(self, watch: Watch) -> None:
            super().__init__()
            self.watch = watch

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            returned = func(*args, **(kwargs or {}))
            if torch.compiler.is_compiling():  # What is compiled, to process weights, does not load any.
                return returned
            if func in writes:
                if not getattr(_here, "unwatched", False):
                    self.watch.see(func, args, kwargs or {})
            elif func in moves and returned.is_meta and returned is not args[0]:
                origin = getattr(args[0], ORIGIN, args[0])
                if not origin.is_meta:
                    setattr(returned, ORIGIN, origin.to(returned.dtype))
            return returned

    return SeesWrites


class WatchedLoad:
    """A module's ``load_weights``, for as long as its tensors are awaited.

    Attributes:
        module: The module.
        before: What was in its dictionary under this name.
        load: Its ``load_weights``.
        watch: The tensors of the model.
    """

    def __init__(self, module: Any, watch: Watch) -> None:
        self.module, self.watch = module, watch
        self.before, self.load = vars(module).get("load_weights"), module.load_weights
        functools.update_wrapper(self, self.load, updated=())
        vars(module)["load_weights"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Load, and see what is written.

        Args:
            args: What ``load_weights`` takes.
            kwargs: The same.

        Returns:
            What it returns.
        """
        if self.watch.is_over():
            unwatch(self.module)
            return self.load(*args, **kwargs)
        before = getattr(_here, "watch", None)
        if before is self.watch:
            return self.load(*args, **kwargs)
        _here.watch = self.watch
        try:
            with _mode()(self.watch):
                return self.load(*args, **kwargs)
        finally:
            _here.watch = before


def watch(model: torch.nn.Module) -> None:
    """Have the ``load_weights`` of a model, and of its parts, see what is written into the tensors that are awaited.

    Args:
        model: The model, in a layerwise reload.
    """
    unwatch(model)
    seen = Watch(model)
    for module in model.modules():
        if callable(getattr(module, "load_weights", None)):
            WatchedLoad(module, seen)


def unwatch(model: torch.nn.Module) -> None:
    """Put the ``load_weights`` of a model and of its parts back.

    Args:
        model: The model.
    """
    for module in model.modules():
        mine = vars(module).get("load_weights")
        if isinstance(mine, WatchedLoad):
            mine.watch.finish()
            del vars(module)["load_weights"]
            if mine.before is not None:
                vars(module)["load_weights"] = mine.before


def tiny_model() -> torch.nn.Module:
    """Make a model of one layer that copies what it is sent into its parameters, for the probe.

    Returns:
        The model.
    """
    made = layerwise_reload.layer()
    made._buffers.clear()

    def load_weights(weights: Any) -> None:
        parameters = dict(made.named_parameters())
        for name, weight in weights:
            parameters[name].data.copy_(weight)

    made.load_weights = load_weights
    return made


def reload(model: Any, *streams: dict[str, float]) -> None:
    """Reload a model by each stream in turn, by its own ``load_weights``.

    Args:
        model: The model.
        streams: What each sends: a value for all elements of a parameter, by the parameter's name.
    """
    import torch
    from vllm.model_executor.model_loader.reload import layerwise

    layerwise.record_metadata_for_reloading(model)
    for stream in streams:
        layerwise.initialize_layerwise_reload(model)
        with torch.no_grad():
            model.load_weights((name, torch.full((4,), value)) for name, value in stream.items())
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
