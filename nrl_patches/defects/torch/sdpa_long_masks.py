"""Attention with a mask over more than 65,536 tokens is wrong in its last rows, in silence, on CUDA.

Problem: the memory-efficient kernel of `scaled_dot_product_attention` (mem_eff_attention/kernel_forward.h) computes
    where a row of the mask begins in 32 bits. With S queries and S keys, every row from about 2^32 / S on reads the
    mask of another row.
Hit by: a mask of any dtype (a boolean causal one, packing, padding) over more than 65,536 tokens where that kernel is
    chosen: float32, and GPUs or masks that cuDNN's does not serve. `is_causal=True` without a mask is right, and so is
    the CPU. Upstream's reporters found it as diverging metrics of RL.
Advice: take torch 2.14, or keep that kernel from being chosen where rows are that long: `is_causal=True`, flash or flex
    attention, or `torch.backends.cuda.enable_mem_efficient_sdp(False)`, after which cuDNN's or the plain one is.
Remove when: no supported torch is older than 2.14.0.

Measured by hand with torch 2.11.0 (CUDA 13.0) on an H100, bfloat16, one head of 64, a causal mask against
`is_causal=True`: 65,536 tokens are right; of 65,600 the rows from 65,536 on are wrong, of 69,632 those from 61,696 on,
by 0.8 to 1.0 where values are 0.01 to 0.3; a boolean mask and one of bfloat16 alike. cuDNN's kernel, which is the
default there, is right. Not measured: torch 2.13.0 on a GPU, and that 2.14.0 is right, which is concluded
from the date of upstream's change.
No probe, because there is no such kernel on the CPU; no patch, because the call is the hottest of all, and in C++.
"""

from nrl_patches import Defect

defect = Defect(
    __name__,
    affected="torch>=2.13.0,<2.14.0",
    upstream=(
        "https://github.com/pytorch/pytorch/issues/162588",
        "https://github.com/pytorch/pytorch/issues/187227",
        "https://github.com/pytorch/pytorch/pull/187225",
    ),
    advice="Beyond 65,536 tokens use is_causal=True, flash or flex attention, or enable_mem_efficient_sdp(False).",
    measured=False,
)
