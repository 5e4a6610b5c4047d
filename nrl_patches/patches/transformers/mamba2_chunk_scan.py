"""Without kernels, the Mamba-2 layers of Zamba2 and Nemotron-H forget what lies more than a chunk back.

Problem: `torch_forward` (models/zamba2/modeling_zamba2.py, models/nemotron_h/modeling_nemotron_h.py) scans a row in
    chunks of `chunk_size` tokens. To find the state in front of each it sums over the chunks that a state reaches
    instead of over those that it comes from. A chunk sees the one before it, scaled by how fast the chunks behind it
    decay, and none further back; a cache gets the state of the last chunk alone.
Hit by: rows longer than `chunk_size` (by default 256 in Zamba2, 128 in Nemotron-H) on the CPU, on GPUs without
    mamba-ssm and causal-conv1d, and, in transformers 5, under `torch.compile` with them too. Wrong logits and gradients
    that also depend on later tokens, and generation from a wrong state; no error.
Fix: the sum is over the chunks that a state comes from, as in Mamba-2, Bamba, Falcon-H1 and Granite 4.
Remove when: no supported release is older than transformers 5.15.0, whose models share one scan, which is right.
"""

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import mamba2_kernels, nemotron_h
from nrl_patches.patches._shared.quiet import quiet

TOLERANCE = 1e-4
"""How far two sizes of a chunk are apart at most, relatively; 3e-7 was seen of a right one, 0.3 of a wrong one."""

patch = Patch(
    __name__,
    affected="transformers>=4.49.0,<5.15.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/47246",
        "https://github.com/huggingface/transformers/issues/47475",
        "https://github.com/huggingface/transformers/pull/47250",
        "https://github.com/huggingface/transformers/pull/47630",
    ),
    opt_out="NRL_DISABLE_MAMBA2_CHUNK_SCAN_PATCH",
)

for mixer in (
    "transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer",
    "transformers.models.nemotron_h.modeling_nemotron_h:NemotronHMamba2Mixer",
):
    # The axes are batch, head, the chunk that is reached, the chunk that it comes from, and two of the state.
    patch.rewrite(
        f"{mixer}.torch_forward",
        Edit(
            old="result = (decay_chunk[..., None, None] * states_permuted[:, :, None, ...]).sum(dim=2)",
            new="result = (decay_chunk[..., None, None] * states_permuted[:, :, None, ...]).sum(dim=3)",
        ),
    )


@patch.probe
def output_depends_on_chunk_size() -> Observation:
    """Run layers with a chunk of the row's length, and with smaller ones."""
    import torch
    import transformers

    mixers = {}
    with quiet():
        if hasattr(transformers, "Zamba2Config"):
            mixers["Zamba2"] = mamba2_kernels.zamba2()
        if nemotron_h.exists():
            mixers["NemotronH"] = mamba2_kernels.nemotron()
        gaps = {}
        for family, mixer in mixers.items():
            hidden = torch.randn(1, 12, mixer.in_proj.in_features, generator=torch.Generator().manual_seed(1))
            outputs = []
            for mixer.chunk_size in (12, 2):
                with torch.no_grad():
                    outputs.append(mixer(hidden))
            whole, chunked = outputs
            gaps[family] = round(float((chunked - whole).norm() / whole.norm()), 6)
    return Observation(any(not gap < TOLERANCE for gap in gaps.values()), gaps)
