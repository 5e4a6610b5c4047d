"""PaliGemma that is trained on text without padding sees the labels that it is to predict.

Problem: without `token_type_ids`, which tell the prompt (0), seen in both directions, from the answer (1),
    `create_causal_mask` makes a causal mask of text; but in SDPA, where nothing is padded, it makes none, and the text
    model, whose configuration says `use_bidirectional_attention`, then attends in both directions.
Hit by: fine-tuning and evaluating `PaliGemmaForConditionalGeneration` on text: a loss that is too low, and no error.
    Zeros, which trainers pass, do the same.
Fix: text that is trained on, or has labels, is all answer, whose mask is causal as in `GemmaForCausalLM`, and as with
    padding. For a prompt that is seen in both directions pass the types. Batches with images, embeddings of the caller,
    generation, and evaluation without labels stay as they are.
Remove when: text without types gets a causal mask in every attention.

From 5.0.0 to 5.8.1 training raises instead, see transformers.paligemma_text_needs_token_type_ids. Before, text without
types is all prompt, padded or not.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import token_types

patch = Patch(
    __name__,
    affected="transformers>=5.9.0,<=5.24.0",
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
    """Change the last token of a text that a tiny model is trained on, without padding and with it."""
    return token_types.observe_leak()
