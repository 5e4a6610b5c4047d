"""Mixers of packed rows on the release that is on the path, before stand-ins for kernels on what passes for a GPU.

    python packed_kernels.py FAMILY...

Prints a JSON object: by family, how far the logits of packed sequences are from those of each alone if the model is
given `position_ids` only, and if it is told of them by keyword too, `seq_idx` or for gated delta nets `cu_seq_lens_q`;
those of two rows; and the states after the last sequence. And how many calls of a rule, or a scan, and of a convolution
were told of the sequences.

The stand-ins keep sequences apart one by one. Before 5.15.0 no release calls kernels on the CPU: there the function for
PyTorch calls that for kernels, but where that takes `seq_idx` itself, or has a scan that takes none. With
`--without-fla` that package has no function, as one that is too old.
"""
# ruff: noqa: FBT002, N803, N806, PLR0913, PLR0917 - the arguments are those of mamba-ssm

import inspect
import itertools
import json
import sys
from contextlib import ExitStack, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

CALLS = []
LENGTHS = (5, 1, 6)


def segments(seq_idx):
    changes = (seq_idx[0].diff() != 0).nonzero().flatten() + 1
    return itertools.pairwise([0, *changes.tolist(), seq_idx.shape[1]])


def by_row(function, seq_idx, axis, *rows):
    """Call a function on each sequence of each row."""
    parts = []
    for row, index in enumerate(seq_idx.split(1)):
        here = [part[row : row + 1] for part in rows]
        parts.append(
            torch.cat([function(*(part.narrow(axis, a, b - a) for part in here)) for a, b in segments(index)], axis)
        )
    return torch.cat(parts)


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
    if seq_idx is not None:
        CALLS.append("convolution")
        assert x.stride(1) == 1
        return by_row(lambda part: causal_conv1d_fn(part, weight, bias, None, activation), seq_idx, -1, x)
    size = weight.shape[-1]
    seen = torch.nn.functional.conv1d(x, weight[:, None], bias, padding=size - 1, groups=len(weight))[
        ..., : x.shape[-1]
    ]
    return torch.nn.functional.silu(seen) if activation else seen


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, dt_softplus=False,
    dt_limit=(0.0, float("inf")), return_final_states=False,
):  # fmt: skip
    assert z is None
    assert initial_states is None
    if seq_idx is not None:
        CALLS.append("scan")
        out = by_row(
            lambda *parts: mamba_chunk_scan_combined(
                *parts[:2], A, *parts[2:], chunk_size, D, None, dt_bias, None, None, dt_softplus, dt_limit
            ),
            seq_idx, 1, x, dt, B, C,
        )  # fmt: skip
        return (out, None) if return_final_states else out
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (torch.nn.functional.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    B, C = (part.repeat_interleave(x.shape[2] // part.shape[2], 2) for part in (B, C))
    state, out = 0, []
    for at in range(x.shape[1]):
        added = (dt[:, at, :, None] * x[:, at])[..., None] * B[:, at, :, None]
        state = state * (dt[:, at] * A).exp()[..., None, None] + added
        out.append((state * C[:, at, :, None]).sum(-1) + D[:, None] * x[:, at])
    out = torch.stack(out, 1)
    return (out, state) if return_final_states else out


def mamba_split_conv1d_scan_combined(zxbcdt, seq_idx=None):
    """Stands for what training calls, which this does not."""
    raise NotImplementedError(zxbcdt, seq_idx)


def chunk_gated_delta_rule(q, k, v, g, beta, initial_state=None, output_final_state=False, cu_seqlens=None, **how):
    """Of both kinds: the decay of a head is that of each of its channels."""
    del how
    bounds = [(row, 0, q.shape[1]) for row in range(len(q))]
    if cu_seqlens is not None:
        CALLS.append("rule")
        assert len(q) == 1
        bounds = [(0, a, b) for a, b in itertools.pairwise(cu_seqlens.tolist())]
    q, k = (part * (part.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for part in (q, k))
    q, k = (part.repeat_interleave(v.shape[2] // part.shape[2], 2) for part in (q, k))
    g = g[..., None] if g.dim() == 3 else g
    q, out, states = q * q.shape[-1] ** -0.5, torch.empty_like(v), []
    for number, (row, first, end) in enumerate(bounds):
        state = torch.zeros(v.shape[2], q.shape[-1], v.shape[-1]) if initial_state is None else initial_state[number]
        for at in range(first, end):
            state = state * g[row, at].exp()[..., None]
            new = beta[row, at, :, None] * (v[row, at] - torch.einsum("hkv,hk->hv", state, k[row, at]))
            state = state + k[row, at, ..., None] * new[:, None]
            out[row, at] = torch.einsum("hkv,hk->hv", state, q[row, at])
        states.append(state)
    return out, torch.stack(states) if output_final_state else None


def stand_in(name, **members):
    module = sys.modules[name] = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(members)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def by_kernels(model, functions):
    """Let the mixers of a release before 5.15.0 call what they call on a GPU."""
    stack = ExitStack()
    for kind in {type(module) for module in model.modules() if hasattr(type(module), "cuda_kernels_forward")}:
        there = vars(sys.modules[kind.__module__])
        if "seq_idx" in inspect.signature(kind.cuda_kernels_forward).parameters or "selective_scan_fn" in there:
            stack.enter_context(mock.patch.dict(there, is_fast_path_available=False))
            continue
        name = "torch_forward" if hasattr(kind, "torch_forward") else "slow_forward"
        stack.enter_context(mock.patch.dict(there, is_fast_path_available=True, **functions))
        stack.enter_context(mock.patch.object(kind, name, lambda self, *args: self.cuda_kernels_forward(*args)))
    for mixer in [module for module in model.modules() if hasattr(module, "chunk_gated_delta_rule")]:
        for name in functions.keys() & vars(mixer).keys():
            setattr(mixer, name, functions[name])
    stack.enter_context(mock.patch("torch.cuda.device", return_value=nullcontext()))
    return stack


def gap_of_rows(model, without_cache):
    """Of two rows, whose sequences begin elsewhere."""
    tokens = 3 + torch.arange(2 * sum(LENGTHS)).view(2, -1) % (model.config.vocab_size - 3)
    rows = [LENGTHS, LENGTHS[::-1]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in rows])
    with torch.no_grad():
        packed = model(input_ids=tokens, position_ids=positions, **without_cache).logits
        parts = [part for row, lengths in zip(tokens.split(1), rows, strict=True) for part in row.split(lengths, 1)]
        alone = [model(input_ids=part, use_cache=False).logits for part in parts]
    return float((packed.flatten(0, 1) - torch.cat(alone, 1)[0]).abs().max())


def states(model, tokens, **how):
    with torch.no_grad():
        made = model(input_ids=tokens, use_cache=True, **how)
    cache = next(made[name] for name in ("past_key_values", "cache", "cache_params") if made.get(name) is not None)
    kept = [vars(holder) for holder in getattr(cache, "layers", [cache]) if hasattr(holder, "__dict__")] or [
        vars(cache)
    ]
    kept = [[layer[name] for name in layer if name.startswith(("conv_states", "recurrent_states"))] for layer in kept]
    return [leaf for leaf in tree_leaves(next(filter(None, kept))) if torch.is_tensor(leaf)]


def gap_of_states(model):
    """Of the first layer with a state, as attention goes on with all that is in a cache."""
    tokens = 3 + torch.arange(sum(LENGTHS))[None]
    packed = states(model, tokens, position_ids=torch.cat([torch.arange(n) for n in LENGTHS])[None])
    alone = states(model, tokens[:, -LENGTHS[-1] :])
    return max(float((a - b).abs().max()) for a, b in zip(packed, alone, strict=True))


def gaps(family, functions):
    from nrl_patches.patches._shared import kernel_rows, linear_attention_models, mamba_models, state_space_models
    from nrl_patches.patches._shared.packing import leak

    if family in linear_attention_models.FAMILIES:
        model = linear_attention_models.tiny_model(family)
        told = {"cu_seq_lens_q": torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)}
    else:
        models = mamba_models if family in mamba_models.FAMILIES else state_space_models
        model = state_space_models.without_attention(models.tiny_model(family))
        index = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
        told = {"seq_idx": index[None].to(torch.int32)}
    measures = {
        "positions": lambda: leak(model, LENGTHS, use_cache=False),
        "told": lambda: leak(model, LENGTHS, use_cache=False, **told),
        "rows": lambda: gap_of_rows(model, {"use_cache": False}),
        "rows, cached": lambda: gap_of_rows(model, {"use_cache": True}),
        "states": lambda: gap_of_states(model),
    }
    ways = {}
    for name, measure in measures.items():
        CALLS.clear()
        with mock.patch.object(kernel_rows, "is_on_gpu", return_value=True), by_kernels(model, functions):
            gap = measure()
        ways[name] = {"gap": gap, **{kind: CALLS.count(kind) for kind in ("convolution", "scan", "rule")}}
    return ways


if __name__ == "__main__":
    families = [argument for argument in sys.argv[1:] if argument != "--without-fla"]
    scans = {f.__name__: f for f in (mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined)}
    kernels = scans | {"causal_conv1d_fn": causal_conv1d_fn}
    stand_in("fla")
    if families == sys.argv[1:]:
        kernels["chunk_gated_delta_rule"] = chunk_gated_delta_rule
        stand_in("fla.ops", __path__=[])
        stand_in("fla.ops.gated_delta_rule", chunk_gated_delta_rule=chunk_gated_delta_rule)
        stand_in("fla.ops.kda", chunk_kda=chunk_gated_delta_rule)
    stand_in("causal_conv1d", causal_conv1d_fn=causal_conv1d_fn)
    for package in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        stand_in(package, __path__=[])
    stand_in("mamba_ssm.ops.triton.ssd_combined", **scans)
    import nrl_patches  # noqa: F401 - applies the patches

    print(json.dumps({family: gaps(family, kernels) for family in families}))
