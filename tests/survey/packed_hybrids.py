"""Packed and padded rows of every hybrid model of a release, whole, against each sequence alone.

    NRL_PATCHES=0 python packed_hybrids.py; python packed_hybrids.py

No part of a test run. transformers and this package are on the path. Prints, by family and implementation of attention,
how far logits are off: packed rows with neither mask nor cache, with a mask of ones, with an empty cache and with both;
and the longer of two rows that are padded on the left or on the right, by itself and in a batch.
"""

import functools
import itertools
import json

import torch
import transformers

from nrl_patches.patches._shared import linear_attention_models, packing, state_space_models
from nrl_patches.patches._shared.quiet import quiet

GIVEN = {
    "neither": {"use_cache": False},
    "a mask": {"use_cache": False, "ones": True},
    "a cache": {"use_cache": True},
    "both": {"use_cache": True, "ones": True},
}


def padded(model, batch, *, left):
    tokens = 3 + torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))[:batch]
    mask, real = torch.ones_like(tokens), slice(3, None) if left else slice(-3)
    mask[0, slice(3) if left else slice(-3, None)] = 0
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[0, real]
        expected = model(input_ids=tokens[:1, real], use_cache=False).logits[0]
    return float((found - expected).abs().max())


def measured(build):
    def attempt(measure, **how):
        try:
            return measure(build(), **how)
        except Exception as error:  # noqa: BLE001 - a release may raise anything
            return repr(error)[:200]

    found = {given: attempt(packing.leak, **how) for given, how in GIVEN.items()}
    for left, batch in itertools.product((True, False), (1, 2)):
        side = "left" if left else "right"
        found[f"padded on the {side}, batch of {batch}"] = attempt(padded, batch=batch, left=left)
    return found


def builds():
    """Return, by family, what builds a tiny model of it with an implementation of attention."""
    found = {}
    for family in (*state_space_models.MAMBA, *state_space_models.SHORT_CONVOLUTION):
        if hasattr(transformers, f"{family}ForCausalLM"):
            found[family] = functools.partial(state_space_models.tiny_model, family)
    for family, prefix in linear_attention_models.FAMILIES.items():
        if hasattr(transformers, f"{prefix}ForCausalLM"):
            found[family] = functools.partial(linear_attention_models.tiny_model, family)
    return found


def main():
    for (family, build), attention in itertools.product(builds().items(), ("eager", "sdpa")):
        with quiet():
            found = measured(lambda build=build, attention=attention: build(attention).eval())
        print(json.dumps({"transformers": transformers.__version__, "model": family, attention: found}), flush=True)


if __name__ == "__main__":
    main()
