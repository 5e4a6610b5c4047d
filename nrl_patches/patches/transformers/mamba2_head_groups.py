"""Without kernels, Mamba-2, Bamba and Zamba2 give the heads of a row other groups than they were trained with.

Problem: heads share B and C by groups, each of neighbouring heads. `torch_forward` (models/mamba2, models/bamba and
    models/zamba2) repeats all groups one after the other for a row, so that the neighbours of a head are of other
    groups. For a single token that is decoded it repeats each in its place, as the kernels do.
Hit by: models with more than one group, and fewer than heads, such as Codestral Mamba and Zamba2, on the CPU and on
    GPUs without mamba-ssm and causal-conv1d: training, evaluation, and the prompt of `generate`, which goes on from a
    wrong state. Wrong logits and gradients, no error.
Fix: each group is repeated in its place.
Remove when: every supported transformers is 4.52.0 or newer.

Mamba-2 of 4.44.0 to 4.47.1 is not repaired.
"""

from collections.abc import Mapping
from typing import Any

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import state_space_models
from nrl_patches.patches._shared.quiet import quiet

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    "Bamba": {"mamba_n_groups": 2, "mamba_chunk_size": 16},
    "Zamba2": {"mamba_ngroups": 2},
}
"""By the prefix of their classes, what tiny models need for several groups, and for a row in a single chunk."""

patch = Patch(
    __name__,
    affected="transformers>=4.48.0,<4.52.0",
    upstream=("https://github.com/huggingface/transformers/pull/37533",),
    opt_out="NRL_DISABLE_MAMBA2_HEAD_GROUPS_PATCH",
)

for mixer in (
    "transformers.models.mamba2.modeling_mamba2:Mamba2Mixer",
    "transformers.models.bamba.modeling_bamba:BambaMixer",
    "transformers.models.zamba2.modeling_zamba2:Zamba2MambaMixer",
):
    patch.rewrite(
        f"{mixer}.torch_forward",
        *(
            Edit(
                old=f"{name} = {name}.repeat(1, 1, self.num_heads // self.n_groups, 1)",
                new=f"{name} = {name}.repeat_interleave(self.num_heads // self.n_groups, dim=2)",
            )
            for name in "BC"
        ),
    )


@patch.probe
def silent_group_is_heard() -> Observation:
    """Take a tiny layer's second group away, and look whether the heads that it is of still hear the first token."""
    import transformers

    if not hasattr(transformers, "BambaForCausalLM"):
        # Mamba-2 is older than the releases that this is about.
        return Observation(present=False, evidence={"absent": "BambaForCausalLM"})
    gaps = {}
    with quiet():
        for family, fields in FAMILIES.items():
            if hasattr(transformers, f"{family}ForCausalLM"):
                model = state_space_models.tiny_model(family, **fields)
                gaps[family] = round(heard(next(module for module in model.modules() if hasattr(module, "A_log"))), 4)
    return Observation(any(gaps.values()), gaps)


def heard(mixer: Any) -> float:
    """Return which part of what a row's first token changes at its end is in the second half of the heads.

    Args:
        mixer: A layer with two groups, of which the second loses what its heads read their state by.
    """
    import torch

    # The convolution does not reach from the first of five tokens to the last.
    rows = torch.randn(2, 5, mixer.in_proj.in_features, generator=torch.Generator().manual_seed(1))
    rows[1, 1:] = rows[0, 1:]
    outputs: list[Any] = []
    mixer.norm.register_forward_pre_hook(lambda _, given: outputs.append(given[0]))
    with torch.no_grad():
        mixer.dt_bias.fill_(-2.0)  # So that no head forgets it on the way.
        for weight in mixer.conv1d.parameters():
            weight[-mixer.ssm_state_size :] = 0
        mixer(rows)
    one, other = outputs[0][:, -1]
    changed = one - other
    return float(changed.chunk(2)[1].norm() / changed.norm())
