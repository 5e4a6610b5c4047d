"""Nemotron-H and Zamba2 hold the time steps of their Mamba-2 layers above a bound that is meant for initialisation.

Problem: `__init__` of the mixers (models/nemotron_h/modeling_nemotron_h.py, models/zamba2/modeling_zamba2.py) sets the
    limit of time steps to `(time_step_min, inf)`. `time_step_min`, 0.001 by default, is what weights are initialised
    by; what holds in a forward is the `time_step_limit` of the configuration, `(0, inf)` in Nemotron's checkpoints and
    none in Zamba2's. While a single token is decoded there is no limit at all.
Hit by: every forward of more than a token, with CUDA kernels and without. Logits and gradients of other time steps than
    the model was trained with, and than generation and vLLM have. Upstream's pull request reports, of Nemotron 3 Nano
    30B-A3B and 2,048 tokens, a mean KL divergence of 0.034, and 0.003 with the limit; no error.
Fix: the mixer takes the limit of the configuration, as in upstream's pull request, which is of Nemotron-H. Zamba2's has
    none, and the time steps then no limit, as in Zyphra's own code, and as with kernels before 5.15.0.
Remove when: both models take it from the configuration; no release so far does.

A model that was built before the patch keeps its limit. Before 5.15.0 see `mamba2_time_step_limit_without_kernels.py`.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import time_steps

patch = Patch(
    __name__,
    affected="transformers>=5.15.0,<=5.24.0",
    upstream=("https://github.com/huggingface/transformers/pull/48989",),
    opt_out="NRL_DISABLE_MAMBA2_TIME_STEP_LIMIT_PATCH",
)

for mixer in (
    "transformers.models.nemotron_h.modeling_nemotron_h:NemotronHMamba2Mixer",
    "transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer",
):
    patch.fix(
        f"{mixer}.__init__",
        guard=lambda init: mismatch(
            init, parameters="self config layer_idx", attributes="config time_step_min time_step_limit"
        ),
    )(time_steps.hold_to_limit)


@patch.probe
def limit_is_ignored() -> Observation:
    """Change the bounds in the configurations of tiny models, and look what their logits depend on."""
    return time_steps.observe(separate_paths=False)
