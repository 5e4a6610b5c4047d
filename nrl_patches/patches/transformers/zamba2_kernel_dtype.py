"""The path with CUDA kernels of Zamba2's Mamba layers projects in another dtype than that without.

Problem: `cuda_kernels_forward` (models/zamba2/modeling_zamba2.py) hands the output of the gated norm to
    `out_proj` as it is, where `torch_forward` casts it to the dtype of the layer's input. The norm widens it if its
    weight is in float32. From 5.11.0 on it is cast to the dtype of the projection's weight, which is bytes if the layer
    is quantized to 4 bits.
Hit by: a model in bfloat16 whose gated norms are kept in float32, on a GPU with mamba-ssm and causal-conv1d:
    `RuntimeError`. From 5.11.0 on one that is quantized to 4 bits: garbage, and nothing is said. A model in one dtype
    is right in all releases, for the kernels return the dtype of their input.
Fix: the path with kernels casts to the dtype of its input, as the other one does, and as the fixed release.
Remove when: no supported release is older than transformers 5.15.0.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import mamba2_kernels

patch = Patch(
    __name__,
    affected="transformers>=4.49.0,<5.15.0",
    upstream=("https://github.com/huggingface/transformers/pull/46487",),
    opt_out="NRL_DISABLE_MAMBA2_KERNEL_DTYPE_PATCH",
)

patch.rewrite(
    "transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer.cuda_kernels_forward",
    mamba2_kernels.projects_in_input_dtype,
)


@patch.probe
def paths_differ() -> Observation:
    """Go both paths of a tiny layer, the kernels replaced by their recurrences; compare them."""
    import transformers

    if not hasattr(transformers, "Zamba2Config"):
        return Observation(False, {"class": "absent"})
    return mamba2_kernels.observe(mamba2_kernels.zamba2)
