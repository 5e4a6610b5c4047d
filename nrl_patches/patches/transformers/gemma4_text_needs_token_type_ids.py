"""The larger models of Gemma 4 refuse to train on text.

Problem: `Gemma4Model.forward` (models/gemma4/modeling_gemma4.py) makes its masks for training only of
    `mm_token_type_ids`, which tell images and videos apart, if these are seen in both directions
    (`use_bidirectional_attention="vision"`). Tokenizers make none, and a batch of text has neither.
Hit by: fine-tuning `Gemma4ForConditionalGeneration` on text: `mm_token_type_ids` is required as a model input when
    training. Zeros, which trainers pass instead, keep SDPA from its causal kernel.
Fix: text is trained with the causal masks that evaluation and `Gemma4ForCausalLM` have. A batch with images or videos,
    and embeddings of the caller, which may be of images, still need the types.
Remove when: no supported release is older than transformers 5.6.0, which asks for them nowhere.
"""

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import token_types

patch = Patch(
    __name__,
    affected="transformers>=5.5.0,<5.6.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45454",
        "https://github.com/huggingface/transformers/issues/45200",
    ),
    opt_out="NRL_DISABLE_TEXT_WITHOUT_TOKEN_TYPES_PATCH",
)

patch.rewrite(
    "transformers.models.gemma4.modeling_gemma4:Gemma4Model.forward",
    Edit(
        old="is_training=self.training,",
        new="""\
is_training=self.training
and (pixel_values is not None or pixel_values_videos is not None or input_ids is None),
""",
    ),
)


@patch.probe
def text_is_refused() -> Observation:
    """Train a tiny model on text without types of tokens."""
    return token_types.observe("Gemma4ForConditionalGeneration", token_types.gemma4)
