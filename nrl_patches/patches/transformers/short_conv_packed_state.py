"""Short convolutions run across the sequences of packed rows.

Problem: the convolution of LFM2, LFM2-MoE and LFM3 (`Lfm2ShortConv.forward` and its copies) sees the last tokens of the
    sequence before in a packed row. It isn't told of `position_ids`; `seq_idx` is dropped, ignored for all but single
    rows, or refused without `causal-conv1d`, by release.
Hit by: training these models on packed rows, `DataCollatorWithFlattening` included. Wrong logits and gradients, no
    error.
Fix: kernels that take `seq_idx` are given it, of whichever of `position_ids`, `seq_idx` and `cu_seq_lens_q` tells of
    the sequences; any other mixer is run on the sequences as a batch. Rows that are not packed take the path that they
    had.
Remove when: transformers separates them by `position_ids` without kernels; no release so far does.

Inside `torch.compile` a packed row raises, as values cannot be read there, and so do sequences that `seq_idx` or
`cu_seq_lens_q` tell of without `position_ids`, which the attention would mix. What is packed on top of a filled cache
stays as it is.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import state_space, state_space_models

patch = Patch(
    __name__,
    affected="transformers>=4.54.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/46093",
        "https://github.com/huggingface/transformers/pull/46333",
    ),
    opt_out="NRL_DISABLE_SHORT_CONV_PACKED_STATE_PATCH",
)

state_space.separate(patch, "lfm2", "Lfm2ShortConv", {"Lfm2DecoderLayer": "conv"})
state_space.separate(patch, "lfm2_moe", "Lfm2MoeShortConv", {"Lfm2MoeDecoderLayer": "conv"})
state_space.separate(patch, "lfm3", "Lfm3ShortConv", {"Lfm3DecoderLayer": "conv"})


@patch.probe
def convolution_runs_across_sequences() -> Observation:
    """Compare the logits of packed sequences with those of each alone."""
    return state_space_models.observe(state_space_models.SHORT_CONVOLUTION)
