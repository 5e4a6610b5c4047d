"""Mixers that keep the sequences of packed rows apart: by kernels that are told of them, or as a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from nrl_patches.patches._shared import kernel_rows
from nrl_patches.patches._shared.sequences_told import Bounds

if TYPE_CHECKING:
    import torch

CACHES = ("cache", "cache_params", "past_key_values", "past_key_value")
"""The names that releases have for the cache."""

OF_ROWS = {"seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
"""Keyword arguments that describe the row, and are wrong of one of its sequences."""


class Packed(NamedTuple):
    """What a decoder layer hands to its mixer as the mask of packed rows.

    Attributes:
        mask: The mask.
        bounds: For each row, where its sequences begin, and its length.
    """

    mask: torch.Tensor | None
    bounds: Bounds


def within_hooks(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward that accelerate's hooks lie around; from 5.13.0 to 5.15.1 they do not tell its signature.

    Args:
        forward: That of a class.
    """
    closure = inspect.getclosurevars(forward).nonlocals if inspect.isfunction(forward) else {}
    return cast("Callable[..., Any]", closure.get("forward_func", forward))


def run_apart(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a mixer that keeps the sequences of packed rows apart.

    Args:
        forward: Upstream's.
    """
    names = list(inspect.signature(within_hooks(forward)).parameters)[1:]
    at = names.index("attention_mask")

    def forward_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[at] if len(args) > at else None
        if not isinstance(mask, Packed):
            return forward(self, *args, **kwargs)
        call = dict(zip(names, args, strict=False)) | kwargs | {"attention_mask": mask.mask}
        cache = next((call[name] for name in CACHES if call.get(name) is not None), None)
        # What is packed on top of earlier tokens stays as it is.
        if cache is not None and _is_filled(cache, self, call):
            return forward(self, **call)
        return _Run(forward, names, self, call).apart(mask.bounds, is_cached=cache is not None)

    return forward_apart


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield which sequences are of about the same length, so that no more than a fifth of each is padded."""
    left = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    while left:
        count = sum(5 * lengths[at] >= 4 * lengths[left[0]] for at in left)
        yield left[:count]
        left = left[count:]


def _padded(parts: Sequence[torch.Tensor], longest: int) -> torch.Tensor:
    """Return sequences as a batch. Unlike with `pad_sequence`, the gradient of all is computed at once."""
    import torch

    pieces = []
    for part in parts:
        pieces.append(part)
        if len(part) < longest:
            pieces.append(part.new_zeros(longest - len(part), *part.shape[1:]))
    return torch.cat(pieces).view(-1, longest, *parts[0].shape[1:])


class _Run:
    """A call of a mixer that is done in parts.

    Args:
        forward: What runs it.
        names: Those of the parameters of its forward.
        mixer: The mixer.
        call: Its arguments by name.
    """

    def __init__(self, forward: Callable[..., Any], names: Collection[str], mixer: Any, call: dict[str, Any]) -> None:
        self.forward, self.names, self.mixer = forward, names, mixer
        self.hidden, self.order, self.mask = (
            call.pop(name, None) for name in ("hidden_states", "cache_position", "attention_mask")
        )
        self.call = {key: value for key, value in call.items() if key not in OF_ROWS}
        self.uncached = {name: None for name in CACHES if name in call}

    def __call__(self, mixer: Any, states: torch.Tensor, mask: torch.Tensor | None, **how: Any) -> Any:
        if self.order is not None:
            how["cache_position"] = self.order[: states.shape[1]]
        return self.forward(mixer, **self.call | {"hidden_states": states, "attention_mask": mask} | how)

    def apart(self, bounds: Bounds, *, is_cached: bool) -> torch.Tensor:
        """Return what the mixer makes of packed rows; a cache goes on with the last sequence of each."""

        def whole(mixer: Any, **how: Any) -> Any:
            return self(mixer, self.hidden, self.mask, **self.uncached, **how)

        found = kernel_rows.by_kernels(whole, self.names, self.mixer, self.hidden, bounds)
        found = self._alone(bounds) if found is None else found
        if is_cached:
            self._cache(bounds)
        return found

    def _alone(self, bounds: Bounds) -> torch.Tensor:
        import torch

        lengths = [b - a for row in bounds for a, b in pairwise(row)]
        hidden = self.hidden.flatten(0, 1).split(lengths)
        mask = None if self.mask is None else self.mask[:, : self.hidden.shape[1]].flatten().split(lengths)
        found: dict[int, torch.Tensor] = {}
        for batch in _batches(lengths):
            longest = lengths[batch[0]]
            states, real = (of and _padded([of[at] for at in batch], longest) for of in (hidden, mask))
            # What is padded comes last, and none before it sees it.
            states = self(self.mixer, states, real, **self.uncached)
            pieces = states.flatten(0, 1).split([n for at in batch for n in (lengths[at], longest - lengths[at])])
            found |= zip(batch, pieces[::2], strict=True)
        return torch.cat([found[at] for at in range(len(lengths))]).view(*self.hidden.shape[:2], -1)

    def _cache(self, bounds: Bounds) -> None:
        import torch

        lengths = [places[-1] - places[-2] for places in bounds]
        longest = max(lengths)
        order = torch.arange(longest - 1, -1, -1, device=self.hidden.device)
        there = self.hidden.new_tensor(lengths)[:, None] > order
        if self.mask is not None:
            there = there & (self.mask[:, -longest:] != 0)
        self(self.mixer, self.hidden[:, -longest:], None if bool(there.all()) else there.to(torch.long))


def _is_filled(cache: Any, mixer: Any, call: Mapping[str, Any]) -> bool:
    """Whether a cache has states of earlier tokens for a mixer."""
    filled = getattr(cache, "has_previous_state", None)
    if callable(filled):
        filled = filled(mixer.layer_idx)
    if filled is None:
        order = call.get("cache_position")
        filled = order is not None and bool(order[0] > 0)
    return bool(filled)
