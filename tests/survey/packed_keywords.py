"""What becomes of sequences that a trainer tells models with states of by keyword, against each alone.

    NRL_PATCHES=0 python packed_keywords.py; python packed_keywords.py

No part of a test run. transformers and this package are on the path. Prints, by family and implementation of attention,
how far logits are off, or what was raised: for `seq_idx`, for the `cu_seq_lens` of flash attention and for both, with
positions that restart, with positions that do not, and with none. The models are the hybrids of the release, and Mamba,
Mamba-2 and FalconMamba, which have no attention.
"""

import itertools
import json
import sys
from functools import partial

import torch
import transformers
from packed_hybrids import builds

from nrl_patches.patches._shared import mamba_models
from nrl_patches.patches._shared.quiet import quiet

LENGTHS = (5, 1, 6)


def keywords():
    """Return what tells of the sequences, by name."""
    ends = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    index = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(torch.int32)[None]
    lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 6, "max_length_k": 6}
    return {"seq_idx": {"seq_idx": index}, "cu_seq_lens": lengths, "both": {"seq_idx": index, **lengths}}


def positions():
    """Return the positions that it is told with, by name."""
    restarting = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {
        "alone": {},
        "with positions that restart": {"position_ids": restarting},
        "with positions that do not": {"position_ids": torch.arange(sum(LENGTHS))[None]},
    }


def measured(build):
    """Return how far logits are off, or the error, by what the model was told."""
    found = {}
    tokens = 3 + torch.arange(sum(LENGTHS))[None] % 50
    for (told, more), (beside, where) in itertools.product(keywords().items(), positions().items()):
        model = build()
        with torch.no_grad():
            expected = torch.cat([model(part, use_cache=False).logits for part in tokens.split(LENGTHS, 1)], 1)
            try:
                logits = model(tokens, use_cache=False, **more, **where).logits
                found[f"{told} {beside}"] = float((logits - expected).abs().max())
            except Exception as error:  # noqa: BLE001 - a release may raise anything
                found[f"{told} {beside}"] = repr(error)[:200]
    return found


def main():
    attentions = sys.argv[1:] or ("eager", "sdpa")
    made = {(family, a): partial(build, a) for (family, build), a in itertools.product(builds().items(), attentions)}
    made |= {(family, "none"): partial(mamba_models.tiny_model, family) for family in mamba_models.FAMILIES}
    for (family, attention), build in made.items():
        with quiet():
            found = measured(lambda build=build: build().eval())
        print(json.dumps({"transformers": transformers.__version__, "model": family, attention: found}), flush=True)


if __name__ == "__main__":
    main()
