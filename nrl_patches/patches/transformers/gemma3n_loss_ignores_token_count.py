"""Gradient accumulation with Gemma 3n's multimodal class adds up the losses of the micro-batches.

Problem: `Gemma3nForConditionalGeneration.forward` (models/gemma3n/modeling_gemma3n.py) computes the mean loss of what
    it is given, and ignores the number of tokens of the whole update, `num_items_in_batch`. The Trainer does not know,
    and divides by nothing.
Hit by: training with `gradient_accumulation_steps=n`: the loss and the gradient are n times too large, and a token of a
    short row weighs more than one of a long row. Nothing is said.
Fix: the loss of a training step is divided by the tokens of the update, which the Trainer counts. Without accumulation,
    and in evaluation, nothing changes.
Remove when: every supported transformers is 5.6.0 or newer.
"""

from typing import Any
from unittest import mock

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import accumulation, token_counts

patch = Patch(
    __name__,
    affected="transformers>=4.53.0,<5.6.0",
    upstream=("https://github.com/huggingface/transformers/issues/39123",),
    opt_out="NRL_DISABLE_ACCUMULATION_TOKEN_COUNT_PATCH",
)

TARGET = "transformers.models.gemma3n.modeling_gemma3n:Gemma3nForConditionalGeneration.forward"


patch.rewrite(TARGET, *token_counts.divides_by_tokens("lm_kwargs"))
token_counts.let_trainer_count(patch, token_counts.runs(TARGET))


def tiny_model() -> Any:
    """Return a Gemma 3n with random weights and without towers, of which the one for images needs timm."""
    from transformers import Gemma3nConfig

    text = {
        "num_hidden_layers": 2,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": [16, 16],
        "activation_sparsity_pattern": [0.0, 0.0],
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 16,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    }
    vision = {"hidden_size": 16, "vocab_size": 4, "vocab_offset": 16}
    config = Gemma3nConfig(
        text_config=accumulation.TEXT | text, vision_config=vision, audio_config=vision | {"vocab_offset": 20}
    )
    return _without_towers(config)


@patch.probe
def loss_is_not_by_tokens() -> Observation:
    """Train one for one update of text in four accumulated batches; compare the loss with that by tokens."""
    return token_counts.losses("Gemma3nForConditionalGeneration", tiny_model, added_up=True)


def _without_towers(config: Any) -> Any:
    import torch
    from transformers import AutoModel, Gemma3nForConditionalGeneration, Gemma3nTextConfig

    from_config = AutoModel.from_config

    def only_text(config: Any, **keywords: Any) -> Any:
        return from_config(config, **keywords) if isinstance(config, Gemma3nTextConfig) else torch.nn.Identity()

    with mock.patch.object(AutoModel, "from_config", only_text):
        return Gemma3nForConditionalGeneration(config)
