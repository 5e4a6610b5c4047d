"""Gradient accumulation with Gemma 4's multimodal class adds up the losses of the micro-batches.

Problem: `Gemma4ForConditionalGeneration.forward` (models/gemma4/modeling_gemma4.py) computes the mean loss of what it
    is given, and ignores the number of tokens of the whole update, `num_items_in_batch`. The Trainer does not know, and
    divides by nothing.
Hit by: training with `gradient_accumulation_steps=n`: the loss is n times too large, and a token of a short row weighs
    more than one of a long row. Nothing is said.
Fix: the loss of a training step is divided by the tokens of the update, which the Trainer counts. Without accumulation,
    and in evaluation, nothing changes.
Remove when: every supported transformers is 5.6.0 or newer; what is left there is `accepts_loss_kwargs_denied`.
"""

from typing import Any

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import accumulation, token_counts

patch = Patch(
    __name__,
    affected="transformers>=5.5.0,<5.6.0",
    upstream=("https://github.com/huggingface/transformers/issues/39123",),
    opt_out="NRL_DISABLE_ACCUMULATION_TOKEN_COUNT_PATCH",
)

TARGET = "transformers.models.gemma4.modeling_gemma4:Gemma4ForConditionalGeneration.forward"


patch.rewrite(TARGET, *token_counts.divides_by_tokens("kwargs"))
token_counts.let_trainer_count(patch, token_counts.runs(TARGET))


def tiny_model() -> Any:
    """Return a Gemma 4 with random weights and without towers."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = accumulation.TEXT | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    more = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 16}
    config = Gemma4Config(text_config=text | more | {"global_head_dim": 8}, vision_config=None, audio_config=None)

    return Gemma4ForConditionalGeneration(config)


@patch.probe
def loss_is_not_by_tokens() -> Observation:
    """Train one for one update of text in four accumulated batches; compare the loss with that by tokens."""
    return token_counts.losses("Gemma4ForConditionalGeneration", tiny_model, added_up=True)
