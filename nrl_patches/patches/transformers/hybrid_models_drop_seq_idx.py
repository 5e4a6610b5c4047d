"""Hybrid models take `seq_idx` and `cu_seq_lens_q`, and drop them.

Problem: a `forward` of Jamba (4.46.0 to 4.57.6), Bamba (4.48.3 to 4.51.3), Zamba2 (up to 5.3.0), Granite 4 (up to
    4.53.3) and Falcon-H1 (up to 5.16.1) takes any keyword argument, and hands none to the model or to its decoder
    layers. So nothing that could separate the sequences of a packed row, or refuse to, learns of them.
Hit by: packed rows of which only these keywords tell, without `position_ids` that restart. Wrong logits and gradients,
    no error.
Fix: such sequences raise `ValueError`, as they do in the layers of newer releases with the `*_packed_state` patches.
Remove when: every supported transformers is 5.17.0 or newer, in which all of these hand them to their layers.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import dropped_keywords, packing, state_space_models
from nrl_patches.patches._shared.quiet import quiet

MODELS = {
    "Bamba": "BambaModel",
    "FalconH1": "FalconH1Model",
    "GraniteMoeHybrid": "GraniteMoeHybridForCausalLM",
    "Jamba": "JambaForCausalLM JambaModel",
    "Zamba2": "Zamba2ForCausalLM Zamba2ForSequenceClassification Zamba2Model",
}
"""By the prefix of their classes, which of those drop them in some release."""

patch = Patch(
    __name__,
    affected="transformers>=4.46.0,<5.17.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/46093",
        "https://github.com/huggingface/transformers/pull/46333",
    ),
    opt_out="NRL_DISABLE_HYBRID_MODELS_DROP_SEQ_IDX_PATCH",
)

for prefix, kinds in MODELS.items():
    module = f"transformers.models.{prefix.lower()}.modeling_{prefix.lower()}".replace("falconh1", "falcon_h1")
    for kind in kinds.split():
        patch.fix(
            f"{module}:{kind}.forward",
            guard=lambda forward: mismatch(forward, parameters="self input_ids attention_mask position_ids"),
        )(dropped_keywords.refuse)


@patch.probe
def sequences_are_dropped() -> Observation:
    """Tell each model of the sequences of a packed row by `seq_idx` alone."""
    import transformers

    with quiet():
        evidence = {
            family: dropped_keywords.unheeded(state_space_models.tiny_model(family))
            for family in MODELS
            if hasattr(transformers, f"{family}ForCausalLM")
        }
    far = (answer for answer in evidence.values() if isinstance(answer, float))
    return Observation(max(far, default=0.0) > packing.ROUNDING, evidence)
