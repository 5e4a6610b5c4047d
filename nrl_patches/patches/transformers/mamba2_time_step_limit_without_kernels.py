"""Without kernels, Nemotron-H and Zamba2 hold their time steps above a bound that is meant for initialisation.

Problem: `torch_forward` of the mixers (models/nemotron_h/modeling_nemotron_h.py, models/zamba2/modeling_zamba2.py)
    holds time steps above `time_step_min`, 0.001 by default, by which weights are initialised. What holds in a forward
    is `time_step_limit`, which the path with kernels takes: `(0, inf)` in Nemotron's checkpoints, none in Zamba2's.
Hit by: both models on the CPU, on GPUs without mamba-ssm and causal-conv1d, and, in transformers 5, under
    `torch.compile` with them too. Logits, gradients and generation of other time steps than the model was trained with;
    no error.
Fix: both clamps, that of a row and that of a single token, take the limit. Upstream did the same in Mamba-2.
Remove when: no supported release is older than transformers 5.15.0, whose mixers have one path.

From 5.15.0 on that path has the same defect: see `mamba2_time_step_limit.py`.
"""

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import time_steps

HELD = 'dt = torch.clamp(dt, *(self.time_step_limit or (0.0, float("inf"))))'
"""Held to the limit of the configuration; None, as in Zamba2, is no limit."""

patch = Patch(
    __name__,
    affected="transformers>=4.49.0,<5.15.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/48989",
        "https://github.com/huggingface/transformers/pull/35154",
    ),
    opt_out="NRL_DISABLE_MAMBA2_TIME_STEP_LIMIT_PATCH",
)

for mixer in (
    "transformers.models.nemotron_h.modeling_nemotron_h:NemotronHMamba2Mixer",
    "transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer",
):
    patch.rewrite(
        f"{mixer}.torch_forward",
        Edit(old="dt = torch.clamp(dt, self.time_step_min) #, self.time_step_max)", new=HELD),
        Edit(old="dt = torch.clamp(dt, self.time_step_min)", new=HELD),
    )


@patch.probe
def limit_is_ignored() -> Observation:
    """Change the bounds in the configurations of tiny models, and look what their logits depend on."""
    return time_steps.observe(separate_paths=True)
