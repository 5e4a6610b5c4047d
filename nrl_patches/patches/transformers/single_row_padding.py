"""Padding of a single row reaches the state of its tokens.

Problem: `apply_mask_to_padding_states` (in the module of each model with a convolution or a recurrent state) multiplies
    the mask in only where the batch has more than one row.
Hit by: a batch of one row that is padded on the left, in training, evaluation and generation: Falcon-H1, Granite 4,
    Bamba, Mamba-2, LFM2, Qwen3-Next, Qwen3.5, OLMo-Hybrid. Other logits than in a batch of two, no error.
Fix: the mask is multiplied in whenever it has the length of the row.
Remove when: no supported release is older than transformers 5.15.0, which does so.

The convolution of LFM2 up to 4.57.6 takes `lfm2_convolution_mask` too.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import packing, state_space_models

patch = Patch(
    __name__,
    affected="transformers>=4.48.0,<5.15.0",
    upstream=("https://github.com/huggingface/transformers/pull/46773",),
    opt_out="NRL_DISABLE_SINGLE_ROW_PADDING_PATCH",
)


def mask_single_row(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Build a function that masks a single row like several.

    Args:
        apply: transformers' ``apply_mask_to_padding_states``.
    """

    def apply_to_any(hidden_states: Any, attention_mask: Any) -> Any:
        if (
            attention_mask is not None
            and attention_mask.shape[0] == 1
            and attention_mask.shape[1:] == hidden_states.shape[1:2] != (1,)
        ):
            return (hidden_states * attention_mask[:, :, None]).to(hidden_states.dtype)
        return apply(hidden_states, attention_mask)

    return apply_to_any


for family in (
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "inkling",
    "lfm2",
    "lfm2_moe",
    "mamba2",
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
):
    patch.fix(
        f"transformers.models.{family}.modeling_{family}:apply_mask_to_padding_states",
        guard=lambda apply: mismatch(apply, parameters="hidden_states attention_mask", attributes="shape dtype to"),
    )(mask_single_row)


@patch.probe
def a_single_row_differs() -> Observation:
    """Compare the logits of a padded row with those of the same row beside another."""
    import torch
    import transformers

    if not hasattr(transformers, "BambaForCausalLM"):
        return Observation(present=False, evidence={"absent": "BambaForCausalLM"})
    model = state_space_models.tiny_model("Bamba")
    tokens = torch.tensor([[0, 0, 0, 5, 9, 17, 33], [4, 8, 15, 16, 23, 42, 63]])
    mask = (tokens != 0).long()
    with torch.no_grad():
        alone, beside = (model(tokens[:n], attention_mask=mask[:n], use_cache=False).logits[0, 3:] for n in (1, 2))
    gap = float((alone - beside).abs().max())
    return Observation(gap > packing.ROUNDING, {"beside_another": gap})
