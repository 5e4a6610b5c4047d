"""Tiny models that keep a state along the row, and what they make of several tokens on top of a filled cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation
from nrl_patches.patches._shared import state_space_models
from nrl_patches.patches._shared.quiet import quiet

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3
"""How far the logits are off at most, relatively; 3e-6 was seen of right ones, 0.3 of wrong ones."""

CACHES = ("cache", "cache_params", "past_key_values")
"""The names that releases have for the cache."""

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "Mamba": {"state_size": 8},
    "FalconMamba": {"state_size": 8},
    # With a layer that shares the weights of another, which `tie_weights` looks for.
    "Zamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 1,
        "attn_layer_offset": 0,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "num_key_value_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
}
"""By the prefix of their classes, what tiny models need beyond what ``state_space_models`` knows."""


def tiny_model(family: str, **changes: Any) -> Any:
    """Return a causal language model with random weights, on the CPU.

    Args:
        family: The prefix of its classes.
        changes: Fields of its configuration that differ.
    """
    return state_space_models.tiny_model(family, **{**FIELDS.get(family, {}), **changes})


def parts(model: Any, tokens: torch.Tensor, *ends: int, cache: Any = None, **how: Any) -> tuple[torch.Tensor, Any]:
    """Give a model a row in parts, each on top of the cache of those before.

    Args:
        model: A causal language model, or what is called in its place.
        tokens: The row, ``(batch, length)``.
        ends: Where each part ends.
        cache: An empty cache; None if the model makes its own.
        how: Further arguments of each call.

    Returns:
        The logits of the whole row, and the cache.
    """
    import torch

    names = inspect.signature(model.forward).parameters
    name = next(name for name in CACHES if name in names)
    logits, begin = [], 0
    for end in ends:
        how |= {name: cache, "use_cache": True}
        if "position_ids" in names:
            how["position_ids"] = torch.arange(begin, end)[None].expand(len(tokens), -1)
        found = model(input_ids=tokens[:, begin:end], **how)
        logits.append(found.logits)
        cache, begin = found[name], end
    return torch.cat(logits, 1), cache


def gap(family: str) -> float:
    """Return how far the second half of a row, on top of the cache of the first, is from that of the whole row.

    Args:
        family: The prefix of the model's classes.
    """
    import torch

    model = tiny_model(family)
    tokens = 3 + torch.arange(12).view(1, -1) * 5 % 13
    with torch.no_grad():
        whole = model(input_ids=tokens, use_cache=False).logits
        found, _ = parts(model, tokens, 6, 12)
    return float((found - whole).abs().max() / whole.abs().max())


def observe(families: Iterable[str]) -> Observation:
    """Compare rows that models were given in two halves with whole ones.

    Args:
        families: The prefixes of the models' classes; those that the release has no class for are left out.

    Returns:
        The defect is present if the logits of any model differ, and none refuses several tokens.
    """
    import transformers

    gaps: dict[str, float | str] = {}
    with quiet():
        for family in families:
            if hasattr(transformers, f"{family}ForCausalLM"):
                try:
                    gaps[family] = round(gap(family), 4)
                except (IndexError, RuntimeError, ValueError) as refusal:
                    return Observation(present=False, evidence={family: str(refusal)})
    return Observation(any(not far < TOLERANCE for far in gaps.values()), gaps)  # type: ignore[operator]
