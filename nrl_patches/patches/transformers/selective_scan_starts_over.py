"""Mamba, FalconMamba, Jamba and Zamba begin with an empty state where several tokens come on top of a filled cache.

Problem: a mixer (models/mamba, models/falcon_mamba, models/jamba and models/zamba) takes the state of its cache for a
    single token only. For more it scans from an empty one, which then takes the place of what the cache had.
Hit by: a second turn of a conversation on top of the cache of the first, prefill in chunks (`prefill_chunk_size`), and
    whoever scores several tokens on top of a prompt; with kernels too (read: upstream's call of `selective_scan_fn` has
    no state). Wrong logits, and a cache that knows of the last piece only; no error.
Fix: what is left of the state is added to what the scan returns.
Remove when: transformers begins these scans from the state; no release so far does.

Caches of Mamba and FalconMamba, like those of Mamba-2, do not know their length: `generate` reads all that it is given
on top of one, so that it must be given the new tokens only. A warning says so once.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import filled_cache, selective_scan

patch = Patch(
    __name__,
    affected="transformers>=5.15.0,<=5.24.0",
    upstream=("https://github.com/huggingface/transformers/pull/47630",),
    opt_out="NRL_DISABLE_SELECTIVE_SCAN_STARTS_OVER_PATCH",
)

for family, mixer in {
    "mamba": "MambaMixer",
    "falcon_mamba": "FalconMambaMixer",
    "jamba": "JambaMambaMixer",
    "zamba": "ZambaMambaMixer",
}.items():
    patch.rewrite(f"transformers.models.{family}.modeling_{family}:{mixer}.forward", selective_scan.begin_from_cache)

for family, prefix in {"mamba": "Mamba", "falcon_mamba": "FalconMamba"}.items():
    patch.fix(
        f"transformers.models.{family}.modeling_{family}:{prefix}ForCausalLM.prepare_inputs_for_generation",
        guard=lambda prepare: mismatch(prepare, parameters="is_first_iteration"),
    )(selective_scan.tell_of_filled_cache)


@patch.probe
def second_half_does_not_know_the_first() -> Observation:
    """Give a row in two halves, the second on top of the first's cache; compare with the row as a whole."""
    return filled_cache.observe(("Mamba", "FalconMamba", "Jamba", "Zamba"))
