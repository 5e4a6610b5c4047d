"""Mamba, Mamba-2 and FalconMamba run across the sequences of packed rows.

Problem: the convolution and the recurrent state of their layers go on from one sequence of a packed row to the next.
    The causal model drops `position_ids`, `seq_idx` and `cu_seq_lens_q`, and its layers take none of them.
Hit by: training these models on packed rows, `DataCollatorWithFlattening` included. Wrong logits and gradients, no
    error.
Fix: the causal model hands the sequences that any of the three tells of down to its mixers, which are given them as a
    batch, or whose kernels are told of them, as those of hybrid models are by `mamba_packed_state`.
Remove when: transformers separates them by `position_ids` without kernels; no release so far does.

Inside `torch.compile` a packed row raises, as values cannot be read there. What is packed on top of a filled cache
stays as it is.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import mamba_models
from nrl_patches.patches._shared.mixers_apart import within_hooks

patch = Patch(
    __name__,
    affected="transformers>=4.45.0,<=5.24.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/44717",
        "https://github.com/huggingface/transformers/pull/46333",
    ),
    opt_out="NRL_DISABLE_MAMBA_MODELS_PACKED_STATE_PATCH",
)

for family, package in {"Mamba": "mamba", "FalconMamba": "falcon_mamba", "Mamba2": "mamba2"}.items():
    module = f"transformers.models.{package}.modeling_{package}"
    patch.rewrite(f"{module}:{family}ForCausalLM.forward", mamba_models.hand_in)
    patch.rewrite(f"{module}:{family}Model.forward", mamba_models.hand_over)
    patch.fix(
        f"{module}:{family}Mixer.forward",
        guard=lambda forward: mismatch(within_hooks(forward), parameters="self hidden_states attention_mask"),
    )(mamba_models.run_apart)


@patch.probe
def state_runs_across_sequences() -> Observation:
    """Compare the logits of packed sequences with those of each alone."""
    return mamba_models.observe()
