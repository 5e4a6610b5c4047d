"""Gemma 3's multimodal classes refuse to train on text.

Problem: `Gemma3Model.forward` (models/gemma3/modeling_gemma3.py) makes its masks for training only of `token_type_ids`,
    which tell images apart. Tokenizers make none, and a batch of text has no image.
Hit by: fine-tuning `Gemma3ForConditionalGeneration` on text: `token_type_ids` is required as a model input when
    training. Zeros, which trainers pass instead, keep SDPA from its causal kernel.
Fix: text is trained with the causal masks that evaluation and `Gemma3ForCausalLM` have. A batch with images, and
    embeddings of the caller, which may be of images, still need the types.
Remove when: no supported release is older than transformers 5.6.0, which asks for them nowhere.
"""

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import token_types

patch = Patch(
    __name__,
    affected="transformers>=5.0.0,<5.6.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45454",
        "https://github.com/huggingface/transformers/issues/45200",
    ),
    opt_out="NRL_DISABLE_TEXT_WITHOUT_TOKEN_TYPES_PATCH",
)

patch.rewrite(
    "transformers.models.gemma3.modeling_gemma3:Gemma3Model.forward",
    Edit(
        old="is_training=self.training,",
        new="is_training=self.training and (pixel_values is not None or input_ids is None),",
    ),
)


@patch.probe
def text_is_refused() -> Observation:
    """Train a tiny model on text without types of tokens."""
    return token_types.observe("Gemma3ForConditionalGeneration", token_types.gemma3)
