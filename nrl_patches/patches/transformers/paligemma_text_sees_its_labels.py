"""PaliGemma that is trained on text sees the labels that it is to predict.

Problem: without `token_type_ids`, which tell the prompt (0), seen in both directions, from the answer (1),
    `PaliGemmaForConditionalGeneration.forward` (models/paligemma/modeling_paligemma.py) has all of a text seen in both
    directions: up to 4.57.6 because all is prompt, from 5.9.0 on, in SDPA, because no mask is made and the text
    model's attention is not causal.
Hit by: fine-tuning and evaluating it on text without padding: a loss that is too low, and no error. Zeros, which
    trainers pass, do the same.
Fix: text that is trained on, or has labels, is all answer, whose mask is causal as in `GemmaForCausalLM`. For a prompt
    that is seen in both directions pass the types. Batches with images, embeddings of the caller, generation, and
    evaluation without labels stay as they are.
Remove when: text without types gets a causal mask in every attention.

Up to 4.57.6 the types are read together with labels only, so a loss of the caller's own still sees all of the text.
From 5.0.0 to 5.8.1 training raises instead, see transformers.paligemma_text_needs_token_type_ids.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import token_types

patch = Patch(
    __name__,
    affected=("transformers>=4.50.0,<5.0.0", "transformers>=5.9.0,<=5.24.0"),
    upstream=(
        "https://github.com/huggingface/transformers/pull/40917",
        "https://github.com/huggingface/transformers/pull/30967",
    ),
    opt_out="NRL_DISABLE_TEXT_WITHOUT_TOKEN_TYPES_PATCH",
)

patch.rewrite(
    "transformers.models.paligemma.modeling_paligemma:PaliGemmaForConditionalGeneration.forward", token_types.answer_all
)


@patch.probe
def earlier_tokens_see_the_last() -> Observation:
    """Change the last token of a text that a tiny model is trained on."""
    return token_types.observe_leak()
