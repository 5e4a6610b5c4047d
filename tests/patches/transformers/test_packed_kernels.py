"""Packed rows before kernels: those that take the sequences are told of them, and no others are relied on."""

from pathlib import Path

import pytest
from releases import results, run_on

from nrl_patches.patches._shared.mixers_apart import Packed, run_apart

SCRIPT = Path(__file__).with_name("packed_kernels.py")

ROUNDING = 1e-4

HYBRIDS = {"Bamba": 1, "FalconH1": 2, "GraniteMoeHybrid": 1, "NemotronH": 1, "Zamba2": 3, "Lfm2": 1, "Jamba": 1}
MIXERS = HYBRIDS | {"Mamba2": 2, "Mamba": 2, "FalconMamba": 2}
"""How many of them the tiny models have."""
TELL_NOTHING = {"FalconH1", "NemotronH", "Zamba2", "Mamba2"}
"""Those that call kernels before 5.15.0, and tell them of no sequences; until 5.12.0 so does LFM2."""
DELTA_NETS = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid")


def gaps(found):
    return [way["gap"] for family in found.values() for way in family.values()]


def calls(found, kind):
    """By family, how many calls were told of the sequences, which is the same however the model is."""
    (counts,) = {tuple((family, way[name][kind]) for family, way in found.items()) for name in found[next(iter(found))]}
    return dict(counts)


def test_no_more_than_a_fifth_of_a_batch_of_sequences_is_padded():
    import torch

    seen = []

    class Mixer:
        __module__ = "transformers.models"

        def forward(self, hidden_states, attention_mask=None):
            assert attention_mask is None
            seen.append(tuple(hidden_states.shape[:2]))
            return 2 * hidden_states

    hidden = torch.randn(3, 100, 2)
    packed = Packed(None, ((0, 5, 10, 11, 100), (0, 4, 90, 100), (0, 100)))
    assert torch.equal(run_apart(Mixer.forward)(Mixer(), hidden, packed), 2 * hidden)
    # Of 100, 89 and 86 tokens, of 10, of 5, 5 and 4, and of 1.
    assert seen == [(3, 100), (1, 10), (3, 5), (1, 1)]


@pytest.mark.parametrize("release", ["5.5.0", "5.14.1", "5.15.0", "5.24.0"])
def test_kernels_of_state_space_models_are_told_of_packed_sequences(release):
    found = results(run_on(f"transformers=={release}", SCRIPT, *MIXERS))
    assert max(gaps(found)) < ROUNDING
    # The scan of Mamba-1 layers knows nothing of sequences to this day.
    of_mamba_1 = {"Jamba", "Mamba", "FalconMamba"}
    told = {"5.5.0": TELL_NOTHING | {"Lfm2"}, "5.14.1": TELL_NOTHING}.get(release, MIXERS.keys() - of_mamba_1)
    assert calls(found, "convolution") == {family: n if family in told else 0 for family, n in MIXERS.items()}
    assert calls(found, "scan") == {f: n if f in told - {"Lfm2"} else 0 for f, n in MIXERS.items()}


@pytest.mark.parametrize(
    ("release", "families", "has_function"),
    [
        ("4.57.6", ("qwen3_next",), True),
        ("5.14.1", DELTA_NETS, True),
        ("5.14.1", DELTA_NETS, False),
        ("5.24.0", (*DELTA_NETS, "kimi_linear", "bailing_hybrid"), True),
        ("5.24.0", DELTA_NETS, False),
    ],
)
def test_kernels_of_delta_nets_are_told_of_packed_sequences(release, families, has_function):
    options = [] if has_function else ["--without-fla"]
    found = results(run_on(f"transformers=={release}", SCRIPT, *families, *options))
    assert max(gaps(found)) < ROUNDING
    assert calls(found, "rule") == dict.fromkeys(families, int(has_function))
