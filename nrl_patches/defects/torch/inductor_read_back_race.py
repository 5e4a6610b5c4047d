"""A kernel of Inductor may read back what another warp has not yet written: wrong values, now and then.

Problem: a Triton kernel that stores a buffer in a reduction loop and loads it again in a later loop has no barrier
    between the two (`TritonKernel.load`, _inductor/codegen/triton.py). `store` has one, for the other order.
Hit by: `torch.compile` with Inductor on GPUs, where a normalisation is fused with what makes its input, and rows are
    too long for one pass. Upstream saw it in LayerNorm after a concatenation, in float16.
Advice: take torch 2.14. Before that, where compiled values vary from run to run, compare with `backend="aot_eager"`,
    which makes no kernels, and leave what is in the kernel out by `torch.compiler.disable`.
Remove when: no supported torch is older than 2.14.0.

Read in the source of 2.13.0, where `load` emits no barrier; not measured: it needs a GPU, and may not show in a run.
"""

from nrl_patches import Defect

defect = Defect(
    __name__,
    affected="torch>=2.13.0,<2.14.0",
    upstream=(
        "https://github.com/pytorch/pytorch/issues/198562",
        "https://github.com/pytorch/pytorch/issues/190517",
        "https://github.com/pytorch/pytorch/pull/190519",
    ),
    advice="Take torch 2.14; before, keep reductions that vary from run to run out of torch.compile.",
    measured=False,
)
