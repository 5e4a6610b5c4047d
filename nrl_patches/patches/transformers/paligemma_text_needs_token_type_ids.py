"""PaliGemma refuses to train on text, and sees the answers when it is evaluated on it.

Problem: `create_causal_mask_mapping` (models/paligemma/modeling_paligemma.py) makes its masks for training only of
    `token_type_ids`, which tell the prompt (0), seen in both directions, from the answer (1). In evaluation all is
    prompt without them.
Hit by: fine-tuning `PaliGemmaForConditionalGeneration` on text: `token_type_ids` is required as a model input when
    training. Zeros, which trainers pass instead, let each token see the next one, which it is to predict; so does
    evaluation with labels.
Fix: text that is trained on, or has labels, is all answer, whose mask is causal as in `GemmaForCausalLM`. For a prompt
    that is seen in both directions pass the types. A batch with images, and embeddings of the caller, still need them.
    Generation, and evaluation without labels, stay as they are.
Remove when: no supported release is older than transformers 5.9.0, which asks for them nowhere.

`PaliGemmaModel` alone still refuses: ColPali's queries are seen in both directions. Other releases train, and see the
answers: transformers.paligemma_text_sees_its_labels.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import token_types

patch = Patch(
    __name__,
    affected="transformers>=5.0.0,<5.9.0",
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
def text_is_refused() -> Observation:
    """Train a tiny model on text without types of tokens."""
    return token_types.observe("PaliGemmaForConditionalGeneration", token_types.paligemma)
