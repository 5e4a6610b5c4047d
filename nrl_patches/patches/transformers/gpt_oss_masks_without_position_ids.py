"""Packed rows of gpt-oss see each other whatever they are given.

Problem: `GptOssModel.forward` (models/gpt_oss/modeling_gpt_oss.py) makes its masks without `position_ids`, by which
    transformers tells the sequences of a packed row apart.
Hit by: packed rows in eager and flex attention, with a mask or without. Wrong logits and gradients, no error.
Fix: the line that is missing is put among the arguments of the masks, as in upstream's pull request.
Remove when: gpt-oss passes them; no release so far does.

With a mask of ones or a cache it takes `packing_under_mask` too. AFMoE, Evolla and the attention layers of Granite 4
(GraniteMoeHybrid) have the same defect: see `masks_without_position_ids.py`.
"""

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import packing
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=4.55.0,<=5.24.0",
    upstream=("https://github.com/huggingface/transformers/pull/39997",),
    opt_out="NRL_DISABLE_GPT_OSS_MASKS_PATCH",
)

patch.rewrite(
    "transformers.models.gpt_oss.modeling_gpt_oss:GptOssModel.forward",
    Edit(
        old="""
        mask_kwargs = {
            "config": self.config,
        """,
        new="""
        mask_kwargs = {
            "config": self.config,
            "position_ids": position_ids,
        """,
    ),
)


@patch.probe
def packed_rows_see_each_other() -> Observation:
    """Compare the logits of packed sequences with those of each alone."""
    with quiet():
        model = packing.tiny_model("GptOss", "eager", num_local_experts=2, num_experts_per_tok=1, sliding_window=3)
        gap = packing.leak(model, use_cache=False)
    return Observation(gap > packing.ROUNDING, {"neither": gap})
