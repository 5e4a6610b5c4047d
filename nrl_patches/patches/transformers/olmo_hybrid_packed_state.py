"""The linear attention of OLMo Hybrid runs on from one packed sequence into the next.

Problem: `OlmoHybridGatedDeltaNet.forward` (models/olmo_hybrid/modeling_olmo_hybrid.py)
    is not told of `position_ids` that restart. Its convolution and its recurrent state carry a sequence over into those
    behind it.
Hit by: packed or padding-free rows, in training and in evaluation. Wrong logits and gradients, no error.
Fix: the decoder layer hands the sequences down, told by `position_ids`, `cu_seq_lens_q` or `seq_idx`; the state and the
    convolution start anew with each. Where the full attention can't separate what it is told, that is an error.
Remove when: transformers separates such rows by their `position_ids`; no release so far does.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import linear_attention, linear_attention_models

patch = Patch(
    __name__,
    affected="transformers>=5.3.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/46093",
        "https://github.com/huggingface/transformers/issues/46851",
        "https://github.com/huggingface/transformers/pull/46859",
    ),
    opt_out="NRL_DISABLE_DELTA_NET_PACKED_STATE_PATCH",
)

linear_attention.separate(
    patch,
    "olmo_hybrid",
    "OlmoHybridGatedDeltaNet",
    "OlmoHybridLinearAttentionDecoderLayer",
    "OlmoHybridAttentionDecoderLayer",
)


@patch.probe
def packed_rows_share_a_state() -> Observation:
    """Compare packed rows with the same sequences alone."""
    return linear_attention_models.observe("olmo_hybrid")
