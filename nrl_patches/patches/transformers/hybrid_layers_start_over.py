"""State-space, linear attention and convolution layers start over where several tokens come on top of a filled cache.

Problem: the mixers of Mamba-2, Bamba, Falcon-H1, Granite 4, Nemotron-H, Zamba, Zamba2, Jamba, LFM2, Qwen3-Next, Qwen3.5
    and OLMo Hybrid go on from the state of a cache with a single token only. Of more they make what they make of a
    prompt: state, convolution or both begin empty, and take the place of what the cache had.
Hit by: a second turn of a conversation on top of the cache of the first, prefill in chunks (`prefill_chunk_size`), and
    whoever scores several tokens on top of a prompt; with kernels too (read). Wrong logits, and a cache that knows of
    the last piece only; no error, but for Nemotron-H up to 5.4.0 and Zamba2 up to 5.4.0, which mostly raise.
Fix: the mixer reads these tokens one by one, which is right in all these releases, and slower than a scan.
Remove when: no supported release is older than transformers 5.15.0.

A mixer that hands its state to its scan is left alone: the gated delta nets from 5.7.0 on, Mamba-2's from 5.13.0 on.
What is packed on top of a filled cache stays as it is, and so do, with a warning, tokens with gradients where kernels
read them. Mamba and FalconMamba of these releases raise, and are not repaired.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import filled_hybrids, token_by_token

patch = Patch(
    __name__,
    affected="transformers>=4.48.0,<5.15.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45513",
        "https://github.com/huggingface/transformers/issues/46032",
        "https://github.com/huggingface/transformers/pull/46084",
        "https://github.com/huggingface/transformers/pull/46741",
        "https://github.com/huggingface/transformers/pull/47452",
    ),
    opt_out="NRL_DISABLE_HYBRID_LAYERS_START_OVER_PATCH",
)

for family, mixer in {
    "mamba2": "Mamba2Mixer",
    "bamba": "BambaMixer",
    "falcon_h1": "FalconH1Mixer",
    "granitemoehybrid": "GraniteMoeHybridMambaLayer",
    "nemotron_h": "NemotronHMamba2Mixer",
    "zamba": "ZambaMambaMixer",
    "zamba2": "Zamba2MambaMixer",
    "jamba": "JambaMambaMixer",
    "lfm2": "Lfm2ShortConv",
    "lfm2_moe": "Lfm2MoeShortConv",
    "qwen3_next": "Qwen3NextGatedDeltaNet",
    "qwen3_5": "Qwen3_5GatedDeltaNet",
    "qwen3_5_moe": "Qwen3_5MoeGatedDeltaNet",
    "olmo_hybrid": "OlmoHybridGatedDeltaNet",
}.items():
    patch.fix(
        f"transformers.models.{family}.modeling_{family}:{mixer}.forward",
        guard=lambda forward: mismatch(token_by_token.innermost(forward), parameters="self attention_mask"),
    )(token_by_token.read_one_by_one)


@patch.probe
def second_half_does_not_know_the_first() -> Observation:
    """Give a row in two halves, the second on top of the first's cache; compare with the row as a whole."""
    return filled_hybrids.observe()
