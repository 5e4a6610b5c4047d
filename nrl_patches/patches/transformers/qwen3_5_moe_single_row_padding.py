"""Qwen3.5's mixture of experts reads the padding of a batch of one row.

Problem: `apply_mask_to_padding_states` (models/qwen3_5_moe/modeling_qwen3_5_moe.py) sets the states of
    padding to 0 only where the batch has more than one row.
Hit by: a single row padded on the left, in generation, evaluation and training: the convolution and the recurrent state
    of linear attention begin with the padding. Wrong logits and gradients, no error.
Fix: the mask is applied to a single row too, if it is that of these tokens. With a cache it may be longer.
Remove when: no supported release is older than transformers 5.15.0.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import linear_attention

patch = Patch(
    __name__,
    affected="transformers>=5.2.0,<5.15.0",
    upstream=("https://github.com/huggingface/transformers/pull/46773",),
    opt_out="NRL_DISABLE_DELTA_NET_SINGLE_ROW_PADDING_PATCH",
)

patch.fix(
    "transformers.models.qwen3_5_moe.modeling_qwen3_5_moe:apply_mask_to_padding_states",
    guard=lambda apply: mismatch(apply, parameters="hidden_states attention_mask"),
)(linear_attention.mask_single_row)


@patch.probe
def padding_is_read() -> Observation:
    """Compare a padded row alone with the same in a batch of two."""
    return linear_attention.observe_padding("qwen3_5_moe")
