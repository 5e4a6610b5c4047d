"""Gradient accumulation with Gemma 3's multimodal class is not one large batch.

Problem: `Gemma3ForConditionalGeneration.forward` (models/gemma3/modeling_gemma3.py) computes the mean loss of what it
    is given, and ignores the number of tokens of the whole update, `num_items_in_batch`. Up to 4.56.2 the Trainer does
    not know, and divides by nothing; from 4.57.0 on the class says so, and the Trainer takes the mean of the means.
Hit by: training with `gradient_accumulation_steps=n`. The loss and the gradient are n times too large before 4.57.0;
    after it, a token of a short row weighs more than one of a long row. Nothing is said.
Fix: the loss of a training step is divided by the tokens of the update, which the Trainer counts. Without accumulation,
    and in evaluation, nothing changes.
Remove when: every supported transformers is 5.17.0 or newer.
"""

from typing import Any

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import accumulation, token_counts

patch = Patch(
    __name__,
    affected="transformers>=4.50.0,<5.17.0",
    upstream=("https://github.com/huggingface/transformers/issues/39123",),
    opt_out="NRL_DISABLE_ACCUMULATION_TOKEN_COUNT_PATCH",
)

TARGET = "transformers.models.gemma3.modeling_gemma3:Gemma3ForConditionalGeneration.forward"


patch.rewrite(TARGET, *token_counts.divides_by_tokens("lm_kwargs"))
token_counts.let_trainer_count(patch, token_counts.runs(TARGET))


def tiny_model() -> Any:
    """Return a Gemma 3 with random weights."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=accumulation.TEXT, vision_config=vision | {"image_size": 28, "patch_size": 14})

    return Gemma3ForConditionalGeneration(config)


@patch.probe
def loss_is_not_by_tokens() -> Observation:
    """Train one for one update of text in four accumulated batches; compare the loss with that by tokens."""
    return token_counts.losses("Gemma3ForConditionalGeneration", tiny_model)
