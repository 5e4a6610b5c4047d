"""Every way of ``chunk_scan`` to run a model of Mamba-2 layers, here with two groups, each against the recurrence.

The layers of the reference go through a row token by token, and look up the group of each head.
"""

import functools
from functools import partial
from unittest import mock

import torch
from ways import chunk_scan

from nrl_patches.patches._shared.state_space_models import tiny_model
from nrl_patches.patches.transformers.mamba2_head_groups import FAMILIES


def build(family, chunk=chunk_scan.CHUNK):
    """Stand for the function of ``chunk_scan``: what differs from the reference is not the chunk but the layers."""
    model = tiny_model(family, **FAMILIES[family]).train()
    if chunk == chunk_scan.LENGTH:
        for mixer in (module for module in model.modules() if hasattr(module, "A_log")):
            mixer.torch_forward = partial(recurrence, mixer)
    return model


def recurrence(mixer, hidden_states, *_):
    """Stand for ``torch_forward`` of a mixer, without a cache and padding."""
    groups, width, heads = mixer.n_groups, mixer.ssm_state_size, mixer.num_heads
    sizes = [mixer.intermediate_size, mixer.intermediate_size + 2 * groups * width, heads]
    gate, mixed, step = mixer.in_proj(hidden_states).split(sizes, -1)
    mixed = torch.nn.functional.silu(mixer.conv1d(mixed.mT)[..., : mixed.shape[1]].mT).float()
    inner, *shared = mixed.split([mixer.intermediate_size, groups * width, groups * width], -1)
    inner = inner.unflatten(-1, (heads, -1))
    of_head = torch.arange(heads) // (heads // groups)
    into, out = (part.unflatten(-1, (groups, width))[:, :, of_head] for part in shared)
    step = torch.nn.functional.softplus(step.float() + mixer.dt_bias)
    kept = torch.exp(-step * mixer.A_log.float().exp())
    state, outputs = 0.0, []
    for t in range(inner.shape[1]):
        given = (step[:, t, :, None] * inner[:, t])[..., None] * into[:, t, :, None]
        state = state * kept[:, t, :, None, None] + given
        outputs.append((state * out[:, t, :, None]).sum(-1) + mixer.D[:, None] * inner[:, t])
    return mixer.out_proj(mixer.norm(torch.stack(outputs, 1).flatten(2), gate).to(hidden_states.dtype))


def bfloat16(family):
    """Step by step it rounds otherwise than in chunks; what that does is not told apart."""
    with torch.no_grad():
        found, expected = (
            build(family, chunk).bfloat16().eval()(input_ids=chunk_scan.TOKENS, use_cache=False).logits.float()
            for chunk in (chunk_scan.CHUNK, chunk_scan.LENGTH)
        )
    return max(0.0, ((found - expected).norm() / expected.norm()).item() - 5e-2)


CACHED = ("reference", "whole", "two_steps")


def by_groups(way):
    """Go a way of ``chunk_scan`` with the models of this module, and references of its own."""
    own = {name: functools.cache(getattr(chunk_scan, name).__wrapped__) for name in CACHED}
    with mock.patch.multiple(chunk_scan, build=build, **own):
        return way()


def ways(families=("Bamba", "Zamba2", "Mamba2"), *, whole=True):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Of the models that the release has.
        whole: Whether the first of them goes all ways.
    """
    found = dict(chunk_scan.ways(families, whole=whole, packs=False))
    # Of Bamba no graph is whole, with the patch or without.
    other = dict(chunk_scan.ways(("Zamba2",), whole=whole, packs=False))
    found |= {name: way for name, way in other.items() if name.startswith("compile")}
    for name, way in found.items():
        if not name.endswith("bfloat16"):
            yield name, partial(by_groups, way)
    for family in families:
        yield f"{family}, bfloat16", partial(bfloat16, family)
