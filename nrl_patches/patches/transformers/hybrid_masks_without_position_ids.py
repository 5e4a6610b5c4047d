"""Packed rows of Bamba, Falcon-H1, Granite 4, Jamba and Zamba2 see each other in attention whatever they are given.

Problem: `forward` of these models (from 5.0.0 on Bamba, Falcon-H1 and Zamba2) makes the mask of its attention by
    `_update_causal_mask`, which is told of no positions, by which the sequences of a packed row are told apart.
    `Zamba2Model.forward` does not tell its layers of them either.
Hit by: packed rows in eager and sdpa attention, with a mask or without. Wrong logits and gradients, no error.
Fix: the mask that was made is closed between sequences, and Zamba2's state-space layers are handed them.
Remove when: every supported transformers is 5.2.0 or newer, in which the library makes these masks.

For the state-space layers of the others it takes `mamba_packed_state` too, and for the masks of Granite 4 from 5.0.0 on
`masks_without_position_ids`.
"""

from importlib import import_module

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import jamba, mixers_apart, own_masks, packing, state_space, state_space_models
from nrl_patches.patches._shared.quiet import quiet

MODELS = {
    "Bamba": "bamba",
    "FalconH1": "falcon_h1",
    "GraniteMoeHybrid": "granitemoehybrid",
    "Jamba": "jamba",
    "Zamba2": "zamba2",
}
"""By the prefix of their classes, the packages of the models."""

patch = Patch(
    __name__,
    affected="transformers>=4.45.0,<5.2.0",
    upstream=("https://github.com/huggingface/transformers/pull/39997",),
    opt_out="NRL_DISABLE_HYBRID_MASKS_WITHOUT_POSITION_IDS_PATCH",
)

for prefix, package in MODELS.items():
    forward = f"transformers.models.{package}.modeling_{package}:{prefix}Model.forward"
    more = (state_space.hand_over_layers("Zamba2MambaMixer"),) if prefix == "Zamba2" else ()
    patch.rewrite(forward, own_masks.keep_apart, *more)

patch.fix(
    "transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer.forward",
    guard=lambda forward: mismatch(forward, parameters="self hidden_states attention_mask"),
)(mixers_apart.run_apart)


@patch.probe
def packed_rows_see_each_other() -> Observation:
    """Compare the logits of packed sequences with those of each alone: of attention only, but for Zamba2."""
    import transformers

    evidence = {}
    with quiet():
        for name, package in MODELS.items():
            # Before 4.45.0 Jamba is left alone: nothing tells its mixers of sequences either.
            if not hasattr(transformers, f"{name}ForCausalLM") or (name == "Jamba" and not jamba.is_masked()):
                continue
            module = import_module(f"transformers.models.{package}.modeling_{package}")
            if hasattr(getattr(module, f"{name}Model"), "_update_causal_mask"):
                model = state_space_models.tiny_model(name)
                # What the attention of Zamba2 returns goes through its state-space layers.
                model = model if name == "Zamba2" else own_masks.without_mixers(model)
                evidence[name] = packing.leak(model, use_cache=False)
    return Observation(max(evidence.values(), default=0.0) > packing.ROUNDING, evidence)
