"""State-space layers run across the sequences of packed rows.

Problem: the convolution and the recurrent state of Mamba layers (the mixers of Nemotron-H, Falcon-H1, Granite 4, Bamba,
    Zamba2 and Jamba) go on from one sequence of a packed row to the next. They aren't told of `position_ids`;
    `seq_idx` is dropped, ignored or refused without the kernels of `mamba-ssm`.
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
from nrl_patches.patches._shared import jamba, state_space, state_space_models

patch = Patch(
    __name__,
    affected="transformers>=4.45.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/44717",
        "https://github.com/huggingface/transformers/issues/46093",
        "https://github.com/huggingface/transformers/pull/46333",
    ),
    opt_out="NRL_DISABLE_MAMBA_PACKED_STATE_PATCH",
)

state_space.separate(patch, "nemotron_h", "NemotronHMamba2Mixer", {"NemotronHBlock": "mixer"})
state_space.separate(patch, "bamba", "BambaMixer", {"BambaDecoderLayer": "mamba"})
state_space.separate(
    patch, "falcon_h1", "FalconH1Mixer", {"FalconH1DecoderLayer": "mamba"}, mask="mamba_attention_mask"
)
state_space.separate(patch, "granitemoehybrid", "GraniteMoeHybridMambaLayer", {"GraniteMoeHybridDecoderLayer": "mamba"})
state_space.separate(
    patch, "zamba2", "Zamba2MambaMixer", {"Zamba2MambaDecoderLayer": "mamba", "Zamba2HybridLayer": "mamba_decoder"}
)
state_space.separate(patch, "jamba", "JambaMambaMixer", {"JambaMambaDecoderLayer": "mamba"})
patch.rewrite(
    "transformers.models.granitemoehybrid.modeling_granitemoehybrid:GraniteMoeHybridModel.forward",
    state_space.tell_layers,
)


@patch.probe
def state_runs_across_sequences() -> Observation:
    """Compare the logits of packed sequences with those of each alone."""
    families = state_space_models.MAMBA
    # Before 4.45.0 its mixers are given no mask, in place of which they are told of sequences.
    return state_space_models.observe(f for f in families if f != "Jamba" or jamba.is_masked())
