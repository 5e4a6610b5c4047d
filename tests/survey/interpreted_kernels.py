"""Packed rows by mamba-ssm's and flash-linear-attention's own kernels on the CPU, in Triton's interpreter.

    TRITON_INTERPRET=1 python interpreted_kernels.py FOLDER [--tf32] FAMILY...

No part of a test run. transformers is on the path, and so is FOLDER, before numpy's own: there lie triton,
``mamba_ssm`` of an archive of mamba-ssm, which is not built, flash-linear-attention with fla-core, einops, and a numpy
below 2.4 for the interpreter.

Prints, by family, without the patches and with them, how far packed sequences are from each alone, on logits and on
gradients, relatively, with the parameter that is the farthest; and how often a kernel was called, and told of them.
``--tf32`` rounds the operands of each product as a GPU does.
What is replaced: causal-conv1d, which is no Triton, by functions of PyTorch; the choice between configurations of a
kernel, by the first; the checks that something is on a GPU. In ``fla/ops/common/chunk_delta_h.py`` of FOLDER the two
``i_t.to(tl.int64)`` have to be ``i_t``, as a loop counts in plain integers here.
"""

import functools
import json
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import torch
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

TESTS = Path(__file__).resolve().parents[1]
LENGTHS = (70, 1, 57)
CALLS = []


def interpret_on_the_cpu(folder):
    chosen = Autotuner.__init__

    def choose_the_first(self, *args, **kwargs):
        chosen(self, *args, **kwargs)
        self.configs = self.configs[:1]

    Autotuner.__init__ = choose_the_first
    torch.cuda.device = lambda *_: nullcontext()
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=8)
    # Their own __init__ wants what is built.
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(Path(folder, *name.split(".")))]


def rounded(handle):
    if handle.data.dtype != np.float32:
        return handle
    bits = np.ascontiguousarray(handle.data).view(np.uint32)
    return TensorHandle(((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32), handle.dtype)


def round_operands():
    exact = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: exact(self, rounded(a), rounded(b), *rest)


def convolve(x, weight, bias, seq_idx, initial_states, final_states, silu):  # noqa: PLR0913, PLR0917 - causal-conv1d's
    assert initial_states is final_states is None
    return packed_kernels.causal_conv1d_fn(x, weight, bias, seq_idx, "silu" if silu else None)


def convolve_backward(x, weight, bias, gradient, seq_idx, initial, final, into, _, silu):  # noqa: PLR0913, PLR0917
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        out = convolve(*leaves, seq_idx, initial, final, silu)
    gradients = torch.autograd.grad(out, leaves, gradient)
    if into is not None:
        into.copy_(gradients[0])
    return gradients


def counted(kernel, keyword):
    @functools.wraps(kernel)
    def called(*args, **kwargs):
        CALLS.append((kernel.__name__, kwargs.get(keyword) is not None))
        return kernel(*args, **kwargs)

    return called


def kernels():
    """Return the kernels by name; they lie where transformers 5.15.0 and newer looks for them too."""
    packed_kernels.stand_in("causal_conv1d", causal_conv1d_fn=packed_kernels.causal_conv1d_fn)
    functions = {"fwd": convolve, "bwd": convolve_backward, "update": None}
    functions = {f"causal_conv1d_{name}_function": function for name, function in functions.items()}
    packed_kernels.stand_in("causal_conv1d.cpp_functions", **functions)
    from fla.ops import gated_delta_rule
    from mamba_ssm.ops.triton import ssd_combined

    names = {"mamba_chunk_scan_combined": "seq_idx", "mamba_split_conv1d_scan_combined": "seq_idx"}
    found = {"causal_conv1d_fn": packed_kernels.causal_conv1d_fn}
    for module, name in [(ssd_combined, name) for name in names] + [(gated_delta_rule, "chunk_gated_delta_rule")]:
        found[name] = counted(getattr(module, name), names.get(name, "cu_seqlens"))
        setattr(module, name, found[name])
    return found


def measured(build):
    model = build()
    found = {}
    with packed_kernels.by_kernels(model, FUNCTIONS), mock.patch.object(kernel_rows, "is_on_gpu", return_value=True):
        for name, measure in {
            "logits": lambda: leak(model.eval(), LENGTHS, use_cache=False),
            "gradients": lambda: gradient_gap(model.train(), LENGTHS),
        }.items():
            CALLS.clear()
            found[name] = measure(), {f"{kernel}, {told}": n for (kernel, told), n in Counter(CALLS).items()}
    return found


def main(families):
    for family in families:
        is_net = family in linear_attention_models.FAMILIES
        build = functools.partial((linear_attention.delta_net if is_net else linear_attention.state_space), family)
        build()  # Imports the module, so that its patches are applied.
        for side in ("off", "on"):
            with nrl_patches.undo() if side == "off" else nullcontext():
                print(json.dumps({family: side, **measured(build)}), flush=True)


if __name__ == "__main__":
    interpret_on_the_cpu(sys.argv[1])
    sys.path[:0] = [str(TESTS), str(TESTS / "gpu")]
    import linear_attention
    from packed_rows import gradient_gap, leak
    from patches.transformers import packed_kernels

    FUNCTIONS = kernels()
    import nrl_patches
    from nrl_patches.patches._shared import kernel_rows, linear_attention_models

    if "--tf32" in sys.argv:
        round_operands()
    main([argument for argument in sys.argv[2:] if argument != "--tf32"])
