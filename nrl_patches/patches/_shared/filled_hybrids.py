"""What tiny hybrid models make of several tokens on top of a cache that `generate` has filled."""

from __future__ import annotations

import inspect
from typing import Any

from nrl_patches import Observation
from nrl_patches.patches._shared import linear_attention_models, state_space_models
from nrl_patches.patches._shared.quiet import quiet

TOLERANCE = 1e-3
"""How far the logits are off at most, relatively; 1e-5 was seen of right ones, 0.8 of wrong ones."""


def gap(model: Any) -> float:
    """Return how far the second half of a row, on top of the cache of the first, is from that of the whole row.

    Args:
        model: A causal language model.
    """
    import torch

    tokens = 3 + torch.arange(12).view(1, -1) * 5 % 13
    first, second = torch.arange(6), torch.arange(6, 12)
    names = inspect.signature(model.forward).parameters
    how = {"position_ids": second[None], "cache_position": second}
    with torch.no_grad():
        filled = model.generate(
            tokens[:, first],
            attention_mask=torch.ones_like(tokens[:, first]),
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
        )
        found = model(
            input_ids=tokens[:, second],
            past_key_values=filled.past_key_values,
            use_cache=True,
            **{name: value for name, value in how.items() if name in names},
        ).logits
        whole = model(input_ids=tokens, use_cache=False).logits[:, second]
    return float((found - whole).abs().max() / whole.abs().max())


def observe() -> Observation:
    """Compare rows that models were given in two halves with whole ones.

    Returns:
        The defect is present if the logits of any model differ.
    """
    import transformers

    if not hasattr(transformers, "BambaForCausalLM"):
        # Jamba and Mamba-2 are older than the releases that this is about.
        return Observation(present=False, evidence={"absent": "BambaForCausalLM"})
    gaps = {}
    with quiet():
        if not hasattr(transformers, "Lfm2ForCausalLM"):
            # With a single group, as several are decoded wrongly before 4.52.0 for another reason.
            gaps["Bamba"] = gap(state_space_models.tiny_model("Bamba", mamba_n_groups=1))
        else:
            gaps["Lfm2"] = gap(state_space_models.tiny_model("Lfm2"))
        if hasattr(transformers, "Qwen3NextForCausalLM"):
            gaps["Qwen3Next"] = gap(linear_attention_models.tiny_model("qwen3_next"))
    gaps = {family: round(far, 4) for family, far in gaps.items()}
    return Observation(any(not far < TOLERANCE for far in gaps.values()), gaps)
