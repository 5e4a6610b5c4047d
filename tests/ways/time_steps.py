"""Every way of ``chunk_scan`` to run a model of Mamba-2 layers, here with small time steps under a large bound.

The bound is that for initialisation, ``time_step_min``, and has no part in a forward: the reference has next to none.
Other ways set the limit that does have one, so that it leaves a single time step.
"""

import functools
import tempfile
from functools import partial
from unittest import mock

import torch
from ways import chunk_scan
from ways.kv_sharing import distance

from nrl_patches.patches._shared import mamba2_kernels
from nrl_patches.patches._shared.time_steps import mixers, of_limit, with_time_steps

SINGLE = {"time_step_limit": (0.05, 0.05)}


def build(family, chunk=chunk_scan.CHUNK):
    """Stand for the function of ``chunk_scan``: what differs from the reference is not the chunk but the bound."""
    bound = 1e-12 if chunk == chunk_scan.LENGTH else 0.5
    return with_time_steps(family, -3.0, chunk_size=16, time_step_min=bound).train()


CACHED = ("reference", "whole", "two_steps")


def bounded(way):
    """Go a way of ``chunk_scan`` with the models of this module, and references of its own."""
    own = {name: functools.cache(getattr(chunk_scan, name).__wrapped__) for name in CACHED}
    with mock.patch.multiple(chunk_scan, build=build, **own):
        return way()


def decoded(family, bias):
    model = with_time_steps(family, bias, **SINGLE)
    how = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    tokens = chunk_scan.TOKENS[:, :2]
    return torch.stack(model.generate(tokens, attention_mask=torch.ones_like(tokens), **how).logits, 1)


def limited_decoding(family):
    return distance({"logits": decoded(family, 2.0)}, {"logits": decoded(family, -2.0)})


def loaded(family):
    """The limit is that of the configuration that was saved."""
    model, other = (with_time_steps(family, bias, **SINGLE) for bias in (2.0, -2.0))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        read = type(model).from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found, expected = (m(input_ids=chunk_scan.TOKENS, use_cache=False).logits for m in (read, other))
    return distance({"logits": found}, {"logits": expected})


def with_kernels(family):
    """Without kernels it is as with them, which are replaced by their recurrences, and have no limit by default.

    With a single group: before 4.52.0 the paths differ in which group they give to a head.
    """
    (mixer, *_) = mixers(with_time_steps(family, -3.0, time_step_min=0.5, n_groups=1, mamba_ngroups=1))
    return max(0.0, mamba2_kernels.apart(mixer.to(torch.bfloat16)) - mamba2_kernels.TOLERANCE)


def ways(families=("NemotronH", "Zamba2"), *, separate_paths=False, **options):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Of the models that the release has.
        separate_paths: Whether mixers have a path of their own without kernels; it holds single tokens to the limit.
        options: Those of ``chunk_scan``.
    """
    for name, way in chunk_scan.ways(families, packs=False, **options):
        yield name, partial(bounded, way)
    for family in families:
        yield f"{family}, limited", partial(of_limit, family)
        yield f"{family}, limited, saved and loaded", partial(loaded, family)
        if separate_paths:
            yield f"{family}, limited, decoded", partial(limited_decoding, family)
            yield f"{family}, as with kernels", partial(with_kernels, family)
