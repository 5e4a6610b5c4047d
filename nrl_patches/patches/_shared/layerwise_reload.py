"""Layerwise reload of vLLM on a module of a few tensors, for the probes of its patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def visible_garbage() -> Iterator[None]:
    """Let torch fill uninitialised memory with NaN, where it might hold the right value by chance."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def layer(**loaders: Callable[..., Any] | None) -> torch.nn.Module:
    """Make a layer with two parameters that hold 1.0, and two buffers, of which one is not persistent.

    Args:
        loaders: The weight loader of a parameter, by its name; vLLM's default if there is none.

    Returns:
        The layer.
    """
    import torch

    made = torch.nn.Module()
    for name in ("first", "last"):
        weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)
        if loaders.get(name):
            weight.weight_loader = loaders[name]
        setattr(made, name, weight)
    made.register_buffer("constant", torch.tensor(8.0))
    made.register_buffer("derived", torch.tensor(5.0), persistent=False)
    return made


def reload(model: torch.nn.Module, *streams: dict[str, float]) -> None:
    """Record a model as it was constructed, and reload it by each stream in turn.

    Args:
        model: The model.
        streams: What each sends: a value for all elements of a parameter, by the parameter's name.
    """
    import torch
    from vllm.model_executor.model_loader.reload import layerwise

    layerwise.record_metadata_for_reloading(model)
    for stream in streams:
        layerwise.initialize_layerwise_reload(model)
        weights: dict[str, Any] = dict(model.named_parameters())  # Once and at first, as a model's `load_weights`.
        for name, value in stream.items():
            weights[name].weight_loader(weights[name], torch.full(weights[name].shape, value))
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))


def values(model: torch.nn.Module) -> dict[str, float]:
    """Return the first element of each parameter and buffer, by name.

    Args:
        model: The model.
    """
    return {name: t.flatten()[0].item() for name, t in [*model.named_parameters(), *model.named_buffers()]}
