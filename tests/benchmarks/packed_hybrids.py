"""The time of a training step of a hybrid model without kernels: packed rows against padded ones of as many tokens.

    python packed_hybrids.py [--width 1024] [--tokens 1024] [FAMILY...]

transformers and this package are on the path. One line per model and length of sequence: the median of five steps with
padded rows, of which none is longer than another, and with all sequences in one row, taken in turns; and their ratio.
NRL_PATCHES=0 is without the patches, where the packed row is wrong. Jamba, whose scan is a loop, takes ten times as
long as the others.
"""

import argparse
import statistics
import time

import torch

import nrl_patches  # noqa: F401 - applies the patches
from nrl_patches.patches._shared import state_space_models
from nrl_patches.patches._shared.quiet import quiet

FAMILIES = ("Lfm2", "NemotronH", "Jamba")
LENGTHS = (128, 32)
STEPS, HEAD = 5, 64


def build(family, width):
    """Return a model of two layers of each kind; the larger sizes are those of its width."""
    layers = {"Lfm2": {"layer_types": ["conv", "full_attention"] * 2}, "Jamba": {"num_hidden_layers": 4}}
    kinds = layers.get(family, {"layers_block_type": ["mamba", "attention"] * 2})
    heads = {"num_attention_heads": width // HEAD, "num_key_value_heads": max(1, width // HEAD // 2), "head_dim": HEAD}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4, "vocab_size": 1024}
    if family == "NemotronH":
        heads |= {"mamba_num_heads": 2 * width // HEAD, "mamba_head_dim": HEAD}
    return state_space_models.tiny_model(family, "sdpa", **sizes | heads | kinds).train()


def seconds(model, tokens, positions):
    model.zero_grad()
    begun = time.perf_counter()
    model(input_ids=tokens, labels=tokens, position_ids=positions, use_cache=False).loss.backward()
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("families", nargs="*", default=FAMILIES, metavar="FAMILY")
    options = parser.parse_args()
    for family in options.families:
        with quiet():
            model = build(family, options.width)
        for length in LENGTHS:
            tokens = torch.randint(3, 1000, (options.tokens // length, length))
            positions = torch.arange(length).expand_as(tokens)
            shapes = {"padded": (tokens, positions), "packed": (tokens.view(1, -1), positions.reshape(1, -1))}
            times = {name: [] for name in shapes}
            for at in range(STEPS + 2):
                for name, (ids, where) in shapes.items():
                    taken = seconds(model, ids, where)
                    if at >= 2:  # The first two warm up.
                        times[name].append(taken)
            padded, packed = (statistics.median(times[name]) for name in shapes)
            print(
                f"{family} {options.tokens // length} x {length}: {padded:.3f} s, {packed:.3f} s, {packed / padded:.2f}"
            )


if __name__ == "__main__":
    main()
