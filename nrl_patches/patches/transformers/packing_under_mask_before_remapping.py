"""Packed rows see each other as soon as there is an attention mask of ones, or an empty cache.

Problem: `_preprocess_mask_arguments` (masking_utils.py) looks for positions that restart only where there is neither a
    two-dimensional mask nor a cache, not even the one that every forward under `use_cache=True` begins with.
Hit by: Mistral, Qwen3, Gemma 3 and 4 and whichever model takes its masks from there, in eager, sdpa and flex attention,
    with packed rows whose collator adds a mask or whose model keeps `use_cache`. Wrong logits and gradients, no error.
Fix: the sequences are told apart there too. Rows of which none is packed keep the mask that they had, bit by bit.
Remove when: no supported release is older than transformers 5.23.0.

As everywhere in these releases, chunked attention (Llama 4) counts the chunks of packed sequences from the start of the
row. The rest is as in `packing_under_mask.py`.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import packing

patch = Patch(
    __name__,
    affected="transformers>=4.53.1,<5.23.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/46634",
        "https://github.com/huggingface/transformers/pull/39194",
    ),
    opt_out="NRL_DISABLE_PACKING_UNDER_MASK_PATCH",
)


@patch.fix(
    "transformers.masking_utils:_preprocess_mask_arguments",
    guard=lambda preprocess: mismatch(
        preprocess,
        parameters="config attention_mask position_ids layer_idx",
        attributes="find_packed_sequence_indices get_mask_sizes",
    ),
)
def tell_apart(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    """Build a preprocessing that also finds packed sequences under a mask and with an empty cache.

    Args:
        preprocess: transformers' ``_preprocess_mask_arguments``.
    """
    look = packing.look_under_mask(preprocess)

    def preprocess_packed(*args: Any, **kwargs: Any) -> Any:
        prepared = preprocess(*args, **kwargs)
        found = look(prepared, args, kwargs)
        return prepared if found is None else (*prepared[:2], found, *prepared[3:])

    return preprocess_packed


@patch.probe
def packed_rows_see_each_other() -> Observation:
    """Compare packed rows with the same sequences alone."""
    return packing.observe(remapping=False)
