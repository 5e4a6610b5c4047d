"""Gradient accumulation averages micro-batches of different size alike, though the model could count tokens.

Problem: classes of multimodal models say `accepts_loss_kwargs = False`, which was right when they computed the loss by
    themselves. Their `forward` hands its keyword arguments to `loss_function` now, so they could divide by the tokens
    of all micro-batches; but the Trainer asks the class, and takes the mean of the micro-batches' means.
Hit by: Qwen2.5-VL from 4.56.0 on; Gemma 3n and Gemma 4 from 5.6.0 on; Qwen3-VL, Qwen3.5 and GLM-4V from 5.17.0 on; 24
    classes of 5.24.0. A token of a short row weighs more than one of a long row, in silence.
Fix: the Trainer counts tokens for a model whose class is wrong about itself, as it does for every text model.
Remove when: no class with such a `forward` says so.

A class is wrong about itself if what it says and its `forward` are defined in the same class, the only loss there is
transformers' own for causal models, of the labels as they came, and it gets all keyword arguments. Models that add the
loss of a router, which the Trainer of every release would sum over the micro-batches, and those that drop the number by
themselves, as Qwen3-VL, Qwen3.5 and GLM-4V do up to 5.16.1, are `accumulation_mean_of_means`' to repair.
"""

from typing import Any

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import accumulation, loss_sources, token_counts

patch = Patch(
    __name__,
    affected="transformers>=4.56.0,<=5.24.0",
    upstream=("https://github.com/huggingface/transformers/issues/39123",),
    opt_out="NRL_DISABLE_ACCUMULATION_TOKEN_COUNT_PATCH",
)


token_counts.let_trainer_count(patch, loss_sources.is_wrong_about_itself)


def tiny_model() -> Any:
    """Return a Qwen2.5-VL with random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    text = accumulation.TEXT | {"rope_parameters": rope, "rope_scaling": rope}
    # Of no use to text, and in the configuration of the older ones only if it is given.
    older = {"vision_start_token_id": 13, "vocab_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **older)
    return Qwen2_5_VLForConditionalGeneration(config)


@patch.probe
def mean_of_means() -> Observation:
    """Train a Qwen2.5-VL for one update of text in four accumulated batches; compare the loss with that by tokens."""
    return token_counts.losses("Qwen2_5_VLForConditionalGeneration", tiny_model, added_up=False)
