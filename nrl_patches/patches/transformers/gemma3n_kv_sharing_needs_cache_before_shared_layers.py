"""The KV-shared layers of Gemma 3n need a cache, in releases whose cache has no `shared_layers`.

Problem: the defect of `transformers.gemma3n_kv_sharing_needs_cache` in older code: a shared layer's
    `Gemma3nTextAttention.forward` (models/gemma3n/modeling_gemma3n.py) cuts the keys and values out of its donor's
    layer of the cache, and without a cache falls back to `k_proj` and `v_proj`, which no training ever touched.
Hit by: `use_cache=False`, gradient checkpointing, and all training: in training mode these releases make no cache even
    where the caller requests one. Wrong logits and wrong gradients, no error.
Fix: as there, a carrier of the shared states. The attention gets it as its cache if it has none; with a
    cache, nothing changes.
Remove when: no supported release is older than transformers 4.56.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import kv_carrier, kv_projections, kv_sharing, kv_states

if TYPE_CHECKING:
    import torch

patch = Patch(
    __name__,
    affected="transformers>=4.53.0,<4.56.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45312",
        "https://github.com/huggingface/transformers/pull/45336",
    ),
    opt_out="NRL_DISABLE_GEMMA3N_KV_SHARING_PATCH",
)


class _WholeStates:
    """Keys or values of a donor. The attention slices those of this step: without a cache there are no others."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states
        self.device = states.device

    def __getitem__(self, _: object) -> torch.Tensor:
        return self.states


class _DonorLayer:
    def __init__(self, states: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.keys, self.values = map(_WholeStates, states)


class _DonorCache:
    """What the attention gets as its cache: one with a single layer, the donor's. A donor is its own donor."""

    def __init__(self, carrier: kv_states.SharedStates, donor: int, *, reads: bool) -> None:
        self.carrier = carrier
        self.donor = donor
        if reads:
            layer = _DonorLayer(carrier[donor])
            self.layers = {donor: layer}
            self.key_cache, self.value_cache = {donor: layer.keys}, {donor: layer.values}  # 4.53 has no `layers`

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, _: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if layer == self.donor:
            self.carrier[layer] = keys, values
        return keys, values


def picks_from_cache(forward: Callable[..., Any]) -> str | None:
    """Check that the attention takes the donor's states from the cache, in one of the two ways that releases have.

    Args:
        forward: The forward of the attention.

    Returns:
        None if it does, otherwise the difference.
    """
    if mismatch(forward, parameters="self past_key_value kwargs", attributes="key_cache value_cache") is None:
        return None
    return mismatch(forward, parameters="self past_key_value kwargs", attributes="layers keys values")


patch.fix(
    "transformers.models.gemma3n.modeling_gemma3n:Gemma3nTextModel.forward",
    guard=lambda forward: mismatch(forward, parameters="self past_key_values use_cache"),
)(kv_carrier.hand_down_states)


def cache_or_donor(attention: Any, cache: Any, carrier: kv_states.SharedStates) -> Any:
    """Return what an attention gets as its cache: the real one, or its donor's layer if there is none.

    Args:
        attention: The attention.
        cache: What it was called with; None without a cache.
        carrier: The states of the donors.
    """
    if cache is not None:
        return cache
    carrier.visited_by(attention.layer_idx)
    kv_projections.note_idle_projections(attention)
    types, own = (
        attention.config.layer_types,
        attention.config.num_hidden_layers - attention.config.num_kv_shared_layers,
    )
    donor = {types[index]: index for index in range(own)}.get(types[attention.layer_idx])
    return None if donor is None else _DonorCache(carrier, donor, reads=attention.is_kv_shared_layer)


@patch.fix("transformers.models.gemma3n.modeling_gemma3n:Gemma3nTextAttention.forward", guard=picks_from_cache)
def pick_from_donor(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build an attention's forward that finds its donor where it looks for a cache that does not exist.

    Args:
        forward: Upstream's ``TextAttention.forward``, with the parameter ``past_key_value``.
    """
    position = kv_carrier.position_of("past_key_value", forward)

    def forward_with_donor(self: Any, *args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.pop(kv_carrier.CARRIER, None)
        if carrier is not None:
            args = kv_carrier.replaced(
                args, kwargs, position, "past_key_value", lambda cache: cache_or_donor(self, cache, carrier)
            )
        return forward(self, *args, **kwargs)

    return forward_with_donor


kv_projections.drop_from(patch, "gemma3n", "Gemma3n")


@patch.probe
def logits_depend_on_the_cache() -> Observation:
    """Compare the logits of a tiny model with and without a cache."""
    if not kv_sharing.before_shared_layers():
        return Observation(present=False, evidence={"replaced by": "shared_layers of the cache"})
    return kv_sharing.observe_missing_cache("gemma3n")
