"""Every way to call a Mamba-2 layer on its path with kernels; a way returns whether that differs from the other path.

The kernels are replaced by their recurrences on the CPU. How far is too far is told by bfloat16, hence a way returns
0.0 for what is as near as that rounds, and how far it is otherwise.
"""

import copy
import functools
import io
import pickle
from functools import partial

from nrl_patches.patches._shared import mamba2_kernels
from nrl_patches.patches._shared.quiet import quiet

FAMILIES = {"zamba2": mamba2_kernels.zamba2, "nemotron": mamba2_kernels.nemotron}


@functools.cache
def hidden(mixer_width):
    import torch

    return torch.randn(2, 6, mixer_width, generator=torch.Generator().manual_seed(1)).bfloat16()


def plain(mixer):
    import torch

    return mixer.to(torch.bfloat16)


def far(one, two):
    one, two = one.float(), two.float()
    apart = float((one - two).norm() / two.norm())
    return 0.0 if apart < mamba2_kernels.TOLERANCE else apart


def other_path(mixer):
    return getattr(mixer, "torch_forward", mixer.forward)


def both(family, change, call=lambda forward, states: forward(states), kind=lambda mixer: mixer):
    """Go both paths without gradients."""
    import torch

    mixer = kind(change(FAMILIES[family]()))
    states = hidden(mixer.in_proj.in_features)
    with torch.no_grad(), mamba2_kernels.on_the_cpu(mixer) as forward:
        return far(call(forward, states), other_path(mixer)(states))


def by_keyword(forward, states):
    import torch

    return forward(hidden_states=states, cache_params=None, attention_mask=torch.ones(2, 6))


def autocast(family):
    """Weights in float32, as autocast wants them."""
    import torch

    mixer = FAMILIES[family]()
    states = hidden(mixer.in_proj.in_features).float()
    with torch.no_grad(), mamba2_kernels.on_the_cpu(mixer) as forward, torch.autocast("cpu", torch.bfloat16):
        return far(forward(states), other_path(mixer)(states))


def compiled(family, backend, fullgraph):
    import torch

    mixer = mamba2_kernels.float32_norm(FAMILIES[family]())
    states = hidden(mixer.in_proj.in_features)
    with torch.no_grad(), mamba2_kernels.on_the_cpu(mixer) as forward:
        torch._dynamo.reset()
        return far(torch.compile(forward, backend=backend, fullgraph=fullgraph)(states), other_path(mixer)(states))


def trained(family, around):
    """Compare the gradients of the input and of what projects it."""
    import torch

    mixer = mamba2_kernels.float32_norm(FAMILIES[family]())
    if hasattr(mixer, "use_mem_eff_path"):
        mixer.use_mem_eff_path = False  # A kernel that has the projection inside.
    gradients = []
    with mamba2_kernels.on_the_cpu(mixer) as forward:
        for path in (partial(around, forward), other_path(mixer)):
            mixer.zero_grad()
            states = hidden(mixer.in_proj.in_features).clone().requires_grad_()
            path(states).float().square().mean().backward()
            gradients.append(torch.cat([states.grad.flatten(), mixer.in_proj.weight.grad.flatten()]))
    return far(*gradients)


def called(forward, states):
    return forward(states)


def checkpointed(forward, states, reentrant):
    from torch.utils.checkpoint import checkpoint

    return checkpoint(forward, states, use_reentrant=reentrant)


def pickled(mixer):
    return pickle.load(io.BytesIO(pickle.dumps(mixer)))


def of_subclass(mixer):
    mixer.__class__ = type(f"My{type(mixer).__name__}", (type(mixer),), {})
    return mixer


def with_lora(mixer):
    import peft
    import torch

    model = peft.get_peft_model(mixer, peft.LoraConfig(r=2, target_modules=["in_proj"]))
    assert model.base_model.model.in_proj.lora_A["default"].weight.dtype == torch.float32
    return mixer


def quietly(way):
    with quiet():
        return way()


def ways(families="zamba2 nemotron", compiles="zamba2 nemotron"):
    """Yield the name of each way and the function that goes it; inductor compiles the families of ``compiles``."""
    for family in families.split():
        norm = mamba2_kernels.float32_norm
        for name, way in {
            "in one dtype": partial(both, family, plain),
            "its norm kept in float32": partial(both, family, norm),
            "quantized": partial(both, family, mamba2_kernels.packed_projection),
            "by keyword": partial(both, family, norm, by_keyword),
            "autocast": partial(autocast, family),
            "gradients": partial(trained, family, called),
            "checkpointing non-reentrant": partial(trained, family, partial(checkpointed, reentrant=False)),
            "checkpointing reentrant": partial(trained, family, partial(checkpointed, reentrant=True)),
            "compile eager": partial(compiled, family, "eager", fullgraph=False),
            "compile aot_eager fullgraph": partial(compiled, family, "aot_eager", fullgraph=True),
            "compile aot_eager": partial(compiled, family, "aot_eager", fullgraph=False),
            "deepcopy": partial(both, family, norm, kind=copy.deepcopy),
            "pickle": partial(both, family, norm, kind=pickled),
            "subclass": partial(both, family, norm, kind=of_subclass),
            "LoRA": partial(both, family, norm, kind=with_lora),
        }.items():
            yield f"{family}, {name}", partial(quietly, way)
        if family in compiles.split():
            yield (
                f"{family}, compile inductor",
                partial(quietly, partial(compiled, family, "inductor", fullgraph=False)),
            )
