"""Several tokens on top of a filled cache, in layers that go on from the state of a cache with a single token only.

The mixer is given one token after the other, as if they were decoded: its code differs by release, and kernels,
adapters and hooks are part of it.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nrl_patches.patches._shared.mixers_apart import CACHES, OF_ROWS

if TYPE_CHECKING:
    import torch

_TAKES_STATE = re.compile(r"\binitial_states?=\w+ if ")
"""What a mixer that goes on with several tokens hands to its scan."""

_STATES = ("conv_states", "recurrent_states", "ssm_states", "conv_cache")
"""The names that releases have for what a cache keeps of a layer."""

_KERNELS = ("causal_conv1d", "mamba_ssm", "fla")


def innermost(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return upstream's own forward, which tells its parameters.

    Around it may be accelerate's hooks, which from 5.13.0 to 5.15.1 do not, and what other patches build.

    Args:
        forward: That of a mixer.
    """
    while True:
        forward = inspect.unwrap(forward)
        closure = inspect.getclosurevars(forward).nonlocals if inspect.isfunction(forward) else {}
        within = closure.get("forward_func", closure.get("forward"))
        if within is None:
            return forward
        forward = within


def read_one_by_one(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a mixer that reads several tokens on top of a filled cache one by one.

    Args:
        forward: Upstream's.
    """
    forward_func = innermost(forward)
    names = list(inspect.signature(forward_func).parameters)[1:]
    kind = getattr(sys.modules[forward_func.__module__], forward_func.__qualname__.partition(".")[0])
    goes_on = _TAKES_STATE.search(inspect.getsource(kind)) is not None

    def forward_each(self: Any, *args: Any, **kwargs: Any) -> Any:
        _ = forward_func  # By this name, that of accelerate's hooks, patches around this one find the parameters.
        call = dict(zip(names, args, strict=False)) | kwargs
        if goes_on or not _reads_several(self, call, call.get(names[0])):
            return forward(self, *args, **kwargs)
        return _each(forward, self, call, names[0])

    return forward_each


def _reads_several(mixer: Any, call: Mapping[str, Any], hidden: torch.Tensor | None) -> bool:
    """Whether a call is for several tokens on top of those that a cache has, of rows that are not packed."""
    import torch

    if hidden is None or hidden.shape[1] == 1:
        return False
    cache = next((call[name] for name in CACHES if call.get(name) is not None), None)
    mask = call.get("attention_mask")
    if cache is None or any(call.get(name) is not None for name in OF_ROWS):
        return False
    if not (mask is None or isinstance(mask, torch.Tensor)) or not _is_filled(cache, mixer, call):
        return False
    if _loses_gradients(hidden):
        _tell_once()
        return False
    return True


def _is_filled(cache: Any, mixer: Any, call: Mapping[str, Any]) -> bool:
    filled = getattr(cache, "has_previous_state", None)
    if callable(filled):
        # A cache of OLMo Hybrid's own, up to 5.5.4, answers for all of its layers.
        filled = filled(mixer.layer_idx) if hasattr(cache, "layers") else filled()
    if filled is None:
        order = call.get("cache_position")
        filled = order is not None and bool(order[0] > 0)
    return bool(filled)


def _loses_gradients(hidden: torch.Tensor) -> bool:
    """Whether kernels would read the tokens: those for a single one compute no gradients."""
    import torch

    if not (hidden.is_cuda and hidden.requires_grad and torch.is_grad_enabled()):
        return False
    return not torch.compiler.is_compiling() and any(importlib.util.find_spec(name) for name in _KERNELS)


@functools.cache
def _tell_once() -> None:
    logging.getLogger("nrl_patches").warning(
        "several tokens with gradients on top of a filled cache: without what the cache has of state-space layers, as "
        "their kernels for it compute no gradients. Read the whole row without a cache, or under torch.no_grad"
    )


def _each(forward: Callable[..., Any], mixer: Any, call: dict[str, Any], name: str) -> torch.Tensor:
    import torch

    hidden, mask, order = call[name], call.get("attention_mask"), call.get("cache_position")
    length = hidden.shape[1]
    cache = next(call[name] for name in CACHES if call.get(name) is not None)
    outputs = []
    for i in range(length):
        this = slice(i, i + 1)
        call[name] = hidden[:, this]
        if mask is not None and mask.dim() == 2:  # noqa: PLR2004 - of padding, (batch, length)
            call["attention_mask"] = mask[:, -length:][:, this]
        if order is not None:
            call["cache_position"] = order[this]
        with _kept_for_gradients(cache, mixer.layer_idx, hidden):
            outputs.append(forward(mixer, **call))
    return torch.cat(outputs, 1)


@contextmanager
def _kept_for_gradients(cache: Any, index: int, hidden: torch.Tensor) -> Iterator[None]:
    """Keep copies of the states that gradients need, as a mixer writes over those of the cache."""
    import torch

    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and hidden.requires_grad):
        yield
        return
    storages = {state.untyped_storage().data_ptr() for state in _states(cache, index)}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        return saved.clone() if saved.untyped_storage().data_ptr() in storages else saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        yield


def _states(cache: Any, index: int) -> Iterator[torch.Tensor]:
    """Yield what a cache keeps of a layer."""
    import torch

    layers = getattr(cache, "layers", None) or ()
    for holder in (cache, *layers[index : index + 1]):
        for name in _STATES:
            states = getattr(holder, name, None)
            for state in (
                states.values() if isinstance(states, dict) else states if isinstance(states, list) else [states]
            ):
                if isinstance(state, torch.Tensor):
                    yield state
