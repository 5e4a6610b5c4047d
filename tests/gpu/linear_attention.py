"""Packed rows of gated delta nets and state-space models on a GPU, by the kernels that are installed there.

    python linear_attention.py [--no-times] [--one-configuration] [MODEL...]

One JSON object per model: the kernels, and how far the logits of packed rows are from the same sequences alone without
the patches and with them, told by `position_ids`, and by `cu_seq_lens_q` or `seq_idx` too; the gradients, relatively,
with the parameter that is the farthest; two rows at once; and what the first layer keeps in a cache of the last
sequence. Then the time of a training step of Qwen3.5, Nemotron-H and Jamba: packed rows against padded ones of as many
tokens, without the patches and with them, by each implementation of attention. ``--one-configuration`` takes the
smallest of each Triton kernel, as to compile and time all of them takes most of an hour.
"""

import inspect
import itertools
import json
import math
import statistics
import sys
import time
from contextlib import nullcontext

import torch
from packed_rows import gradient_gap, leak
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import nrl_patches
from nrl_patches.patches._shared import state_space_models
from nrl_patches.patches._shared.linear_attention_models import FAMILIES
from nrl_patches.patches._shared.quiet import quiet

LENGTHS = (80, 16, 32)
"""Multiples of 16: Triton compiles each kernel anew for others, which takes minutes."""
ROWS = (LENGTHS, (32, 96))


def choose_the_smallest():
    from triton.runtime.autotuner import Autotuner

    chosen = Autotuner.__init__

    def choose(self, *args, **kwargs):
        chosen(self, *args, **kwargs)
        self.configs = [min(self.configs, key=lambda one: math.prod(n for n in one.all_kwargs().values() if n))]

    Autotuner.__init__ = choose


def delta_net(family, attention="sdpa", layers=2, width=128):
    import transformers

    prefix = FAMILIES[family]
    kind = getattr(transformers, f"{prefix}TextConfig", None) or getattr(transformers, f"{prefix}Config")
    config = kind(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        layer_types=["linear_attention", "full_attention"] * (layers // 2),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        initializer_range=0.1,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{prefix}ForCausalLM")(config).eval()


KERNELS = ("chunk_gated_delta_rule", "causal_conv1d_fn", "mamba_chunk_scan_combined", "selective_scan_fn")
KERNELS += ("mamba2_chunk_scan", "mamba_selective_scan")  # From 5.15.0 on.


def kernels(model):
    """Return where the functions are from that its mixers call, by name."""
    kinds = {type(module) for module in model.modules() if hasattr(module, "conv1d") or hasattr(module, "conv")}
    places = [vars(sys.modules[base.__module__]) for kind in kinds for base in kind.__mro__]
    places += [vars(module) for module in model.modules() if type(module) in kinds]
    found = {name: place[name] for name in KERNELS for place in places if place.get(name) is not None}
    return {name: implementation(function).__module__ for name, function in found.items()}


def implementation(function):
    """Return what transformers' wrapper calls, which tells the signature of the path without kernels."""
    own = getattr(function, "__wrapped__", None)
    inner = inspect.getclosurevars(function).nonlocals.get("implementation") if own else None
    return inner or own or function


def rounding(build):
    """How far bfloat16 takes the logits of a single sequence from those of float32."""
    tokens = 3 + torch.arange(max(LENGTHS))[None] % 60
    with torch.no_grad():
        exact, rounded = (
            build().to(dtype)(input_ids=tokens, use_cache=False).logits for dtype in (None, torch.bfloat16)
        )
    return float((exact - rounded).abs().max())


WIDER = {
    "NemotronH": {"mamba_head_dim": 16, "ssm_state_size": 16, "chunk_size": 64},
    "Zamba2": {"mamba_d_state": 16, "chunk_size": 64},
    "Jamba": {"use_mamba_kernels": True},
}
"""What kernels ask for more than tiny models need, by family."""
STATE = {"mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 64, "mamba_d_ssm": 128}
WIDER["GraniteMoeHybrid"] = STATE | {"head_dim": 16}  # Which 4.57.6 does not derive.


def state_space(family, attention="sdpa", **changes):
    given = {"hidden_size": 64, **WIDER.get(family, {} if family.startswith("Lfm") else STATE), **changes}
    with torch.device("cpu"):
        model = state_space_models.tiny_model(family, attention, **given)
    return model.to(torch.get_default_device())


def gradients(model, **how):
    """The gradients of training, for which there are kernels of their own."""
    try:
        return gradient_gap(model.train(), LENGTHS, **how)
    except RuntimeError as error:  # fla refuses its backward pass with some releases of Triton.
        return str(error)[:160]
    finally:
        model.eval()


def gap_of_rows(model):
    tokens = 3 + torch.arange(2 * sum(LENGTHS)).view(2, -1) % 60
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in ROWS])
    with torch.no_grad():
        packed = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        parts = zip(tokens.split(1), ROWS, strict=True)
        alone = [model(input_ids=part, use_cache=False).logits for row, n in parts for part in row.split(n, 1)]
    return float((packed.flatten(0, 1) - torch.cat(alone, 1)[0]).abs().max())


def gap_of_cache(model):
    """How far the states of the first layer are from those after the last sequence alone, relative to the largest."""
    tokens = 3 + torch.arange(sum(LENGTHS))[None] % 60
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with torch.no_grad():
        packed = model(input_ids=tokens, position_ids=positions, use_cache=True).past_key_values
        alone = model(input_ids=tokens[:, -LENGTHS[-1] :], use_cache=True).past_key_values
    layers = [
        {k: v for k, v in vars(cache.layers[0]).items() if k not in {"keys", "values"}} for cache in (packed, alone)
    ]
    pairs = zip(*map(tree_leaves, layers), strict=True)
    states = [pair for pair in pairs if torch.is_tensor(pair[0])]
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in states)


def attempted(attempt):
    try:
        return attempt()
    except Exception as error:  # noqa: BLE001 - any is what there is to say
        return f"{type(error).__name__}: {error}"[:160]


def outcome(build):
    ends = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    index = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None].to(torch.int32)
    by_keyword = {"cu_seq_lens_q": ends, "seq_idx": index}

    def measured():
        model = build()
        found = {"kernels": kernels(model), "float32": leak(model, LENGTHS, use_cache=False)}
        found["gradients"] = gradients(model)
        found["bfloat16"] = leak(model.to(torch.bfloat16), LENGTHS, use_cache=False)
        found["gradients, bfloat16"] = gradients(model)
        found["rounding of bfloat16"] = rounding(build)
        found["two rows"] = attempted(lambda: gap_of_rows(build()))
        found["cache"] = attempted(lambda: gap_of_cache(build()))
        for name, value in by_keyword.items():
            found[name] = attempted(lambda how={name: value}: leak(build(), LENGTHS, use_cache=False, **how))
            found[f"gradients, {name}"] = attempted(lambda how={name: value}: gradients(build(), **how))
        return found

    with quiet():
        return attempted(measured)


def seconds(model, tokens, positions):
    """The median time of a training step, how long the GPU is busy in one, and with how many kernels."""

    def step():
        model.zero_grad()
        torch.cuda.synchronize()
        start = time.perf_counter()
        model(input_ids=tokens, position_ids=positions, labels=tokens, use_cache=False).loss.backward()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    times = [step() for _ in range(22)][2:]
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
    events = [event for event in profiled.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy, kernels = (sum(getattr(event, name) for event in events) for name in ("self_device_time_total", "count"))
    return {"step": statistics.median(times), "busy": busy / 1e6, "kernels": kernels}


LARGE = {
    "Qwen3.5": lambda attention: delta_net("qwen3_5", attention, layers=8, width=1024),
    "Nemotron-H": lambda attention: state_space(
        "NemotronH",
        attention,
        hidden_size=1024,
        intermediate_size=2048,
        num_attention_heads=8,
        head_dim=32,
        layers_block_type=["mamba", "attention"] * 4,
        mamba_num_heads=32,
        mamba_head_dim=64,
        ssm_state_size=128,
        chunk_size=256,
    ),
    "Jamba": lambda attention: state_space(
        "Jamba",
        attention,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        head_dim=128,
        mamba_d_state=16,
        mamba_dt_rank=64,
    ),
}


def step_times(model):
    model = model.to(torch.bfloat16).train()
    times = {}
    for count, length in ((4, 2048), (32, 256), (128, 64)):
        tokens = torch.randint(3, model.config.vocab_size, (count, length))
        positions = torch.arange(length).expand(count, -1)
        padded = seconds(model, tokens, positions)
        packed = seconds(model, tokens.view(1, -1), positions.reshape(1, -1))
        times[f"{count} of {length}"] = {"padded": padded, "packed": packed}
    return times


def print_times(name, attention):
    build = LARGE[name]
    build(attention)  # Imports the module, so that its patches are applied.
    for side in ("off", "on", "off", "on"):
        with nrl_patches.undo() if side == "off" else nullcontext():
            try:
                times = step_times(build(attention))
            except RuntimeError as error:
                times = {"error": str(error)[:160]}
        print(json.dumps({"seconds of a step": name, "attention": attention, "side": side, **times}), flush=True)


def main():
    import transformers
    from transformers import masking_utils  # noqa: F401 - so that its patches are applied

    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}))
    torch.set_default_device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if "--one-configuration" in sys.argv:
        choose_the_smallest()
    asked = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    there = [family for family in FAMILIES if hasattr(transformers, f"{FAMILIES[family]}ForCausalLM")]
    builds = {family: lambda family=family: delta_net(family) for family in there if "qwen" in family}
    for family in (*state_space_models.MAMBA, "Lfm2"):
        builds[family] = lambda family=family: state_space(family)
    for name, build in builds.items():
        if asked and name not in asked:
            continue
        build()  # Imports the module, so that its patches are applied.
        for side in ("off", "on"):
            with nrl_patches.undo() if side == "off" else nullcontext():
                print(json.dumps({"model": name, side: outcome(build)}), flush=True)
    timed = [] if "--no-times" in sys.argv else [name for name in LARGE if not asked or name in asked]
    for name, attention in itertools.product(timed, ("sdpa", "flash_attention_2")):
        print_times(name, attention)
    print(json.dumps({p: str(s.state) for p, s in nrl_patches.status().items() if "packed" in p or "pack" in p}))


if __name__ == "__main__":
    main()
