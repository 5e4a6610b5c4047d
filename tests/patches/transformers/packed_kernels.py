"""Mixers of packed rows on the release that is on the path, before stand-ins for kernels on what passes for a GPU.

    python packed_kernels.py FAMILY...

Prints a JSON object: by family, how far the logits of packed sequences are from those of each alone if the model is
given `position_ids` only, and if it is given `seq_idx` too; and how many calls of a scan and a convolution had that.

The stand-ins keep the sequences of `seq_idx` apart, each by transformers' own function for PyTorch. Before 5.15.0 no
release calls them on the CPU.
"""
# ruff: noqa: FBT002, N803, PLR0913, PLR0917 - the arguments are those of mamba-ssm

import importlib
import itertools
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest import mock

import torch

CALLS = []
LENGTHS = (5, 1, 6)


def upstream(name):
    """Transformers' own function for PyTorch."""
    return getattr(importlib.import_module("transformers.models.bamba.modeling_bamba"), name).__wrapped__


def segments(seq_idx):
    changes = (seq_idx[0].diff() != 0).nonzero().flatten() + 1
    return itertools.pairwise([0, *changes.tolist(), seq_idx.shape[1]])


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
    convolve = upstream("causal_conv1d_fn")
    if seq_idx is None:
        return convolve(x, weight, bias, activation=activation)
    CALLS.append("convolution")
    parts = [convolve(x[..., a:b], weight, bias, activation=activation) for a, b in segments(seq_idx)]
    return torch.cat(parts, -1)


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, dt_softplus=False,
    dt_limit=(0.0, float("inf")), return_final_states=False,
):  # fmt: skip
    scan = upstream("mamba2_chunk_scan")
    how = {"chunk_size": chunk_size, "D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus, "dt_limit": dt_limit}
    if seq_idx is None:
        how |= {"z": z, "initial_states": initial_states, "return_final_states": return_final_states}
        return scan(x, dt, A, B, C, **how)
    CALLS.append("scan")
    parts = [scan(*(t[:, a:b] for t in (x, dt)), A, *(t[:, a:b] for t in (B, C)), **how) for a, b in segments(seq_idx)]
    return torch.cat(parts, 1)


def mamba_split_conv1d_scan_combined(zxbcdt, seq_idx=None):
    """Stands for what training calls, which this does not."""
    raise NotImplementedError(zxbcdt, seq_idx)


def stand_in(name, **members):
    module = sys.modules[name] = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(members)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def gaps(family):
    from nrl_patches.patches._shared import kernel_rows, state_space_models
    from nrl_patches.patches._shared.packing import leak

    model = state_space_models.without_attention(state_space_models.tiny_model(family))
    index = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None].to(torch.int32)
    ways = {}
    for name, how in {"positions": {}, "seq_idx too": {"seq_idx": index}}.items():
        CALLS.clear()
        with mock.patch.object(kernel_rows, "is_on_gpu", return_value=True):
            gap = leak(model, LENGTHS, use_cache=False, **how)
        ways[name] = {"gap": gap, **{kind: CALLS.count(kind) for kind in ("convolution", "scan")}}
    return ways


if __name__ == "__main__":
    stand_in("causal_conv1d", causal_conv1d_fn=causal_conv1d_fn)
    for package in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        stand_in(package, __path__=[])
    functions = (mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined)
    stand_in("mamba_ssm.ops.triton.ssd_combined", **{function.__name__: function for function in functions})
    import nrl_patches  # noqa: F401 - applies the patches

    print(json.dumps({family: gaps(family) for family in sys.argv[1:]}))
