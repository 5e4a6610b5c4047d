"""Padding reaches the convolutions of LFM2.

Problem: `Lfm2Model.forward` gives its short convolutions the mask of the attention, which has four dimensions or is
    none; `apply_mask_to_padding_states` leaves those alone.
Hit by: rows that are padded on the left, in training, evaluation and generation, whatever the size of the batch. Other
    logits than those of the row without padding, no error.
Fix: the convolutions are given the mask of padding, as upstream has it from 5.0.0 on.
Remove when: every supported transformers is 5.0.0 or newer.

A batch of a single row takes `single_row_padding` too.
"""

import ast

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import packing, state_space_models

patch = Patch(
    __name__,
    affected="transformers>=4.54.0,<5.0.0",
    upstream=("https://github.com/huggingface/transformers/pull/41790",),
    opt_out="NRL_DISABLE_LFM2_CONVOLUTION_MASK_PATCH",
)

OF_LAYER = (
    "causal_mask if decoder_layer.is_attention_layer else attention_mask "
    # On top of earlier tokens it is of these too.
    "if attention_mask is not None and attention_mask.shape[1] == hidden_states.shape[1] != 1 else None"
)


def give_padding(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of the model so that its convolutions are given the mask of padding.

    Args:
        function: Upstream's.

    Returns:
        The same with another mask for those.

    Raises:
        MismatchError: It does not give all its layers the mask of attention in one place.
    """
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    masks = [
        keyword
        for call in calls
        if ast.unparse(call.func) == "decoder_layer"
        for keyword in call.keywords
        if keyword.arg == "attention_mask" and ast.unparse(keyword.value) == "causal_mask"
    ]
    if len(masks) != 1:
        raise MismatchError("`decoder_layer(attention_mask=causal_mask)` once", f"it {len(masks)} times")
    masks[0].value = ast.parse(OF_LAYER, mode="eval").body
    return function


patch.rewrite("transformers.models.lfm2.modeling_lfm2:Lfm2Model.forward", give_padding)


@patch.probe
def padding_reaches_the_convolution() -> Observation:
    """Compare the logits of a row that is padded on the left, beside another, with those of the row alone."""
    import torch
    import transformers

    if not hasattr(transformers, "Lfm2ForCausalLM"):
        return Observation(present=False, evidence={"absent": "Lfm2ForCausalLM"})
    model = state_space_models.tiny_model("Lfm2")
    tokens = torch.tensor([[0, 0, 0, 5, 9, 17, 33], [4, 8, 15, 16, 23, 42, 63]])
    with torch.no_grad():
        padded = model(tokens, attention_mask=(tokens != 0).long(), use_cache=False).logits[0, 3:]
        alone = model(tokens[:1, 3:], use_cache=False).logits[0]
    gap = float((padded - alone).abs().max())
    return Observation(gap > packing.ROUNDING, {"alone": gap})
