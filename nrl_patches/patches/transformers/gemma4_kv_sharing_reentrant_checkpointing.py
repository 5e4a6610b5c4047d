"""The KV-shared layers of Gemma 4 lose gradients under reentrant checkpointing.

Problem: `Gemma4TextAttention.forward` (models/gemma4/modeling_gemma4.py) reads a shared layer's keys and values
    from a mapping in which their donor has stored them. Reentrant checkpointing runs both without gradients, and again
    in the backward pass, each in its own graph: what flows back through the shared states ends in the graph of the
    shared layer. A donor that is not checkpointed itself is differentiated twice, which torch rejects.
Hit by: `gradient_checkpointing_enable({"use_reentrant": True})`, which nemo-automodel up to 0.5.0, TRL (PEFT under
    ZeRO-3), LLaMA-Factory and ms-swift choose, and torch's reentrant wrapper. Wrong gradients, no error.
Fix: the text model hands the states down in a carrier that takes the gradient back to the donor.
Remove when: upstream does so; no release so far does.

The releases whose layers share through a cache only get the carrier from `gemma4_kv_sharing_needs_cache.py`.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import kv_carrier, kv_sharing

patch = Patch(
    __name__,
    affected="transformers>=5.5.2,<=5.24.0",
    upstream=(
        "https://github.com/unslothai/unsloth-zoo/pull/813",
        "https://github.com/huggingface/transformers/pull/45312",
    ),
    opt_out="NRL_DISABLE_GEMMA4_KV_SHARING_REENTRANT_CHECKPOINTING_PATCH",
    relies_on=(
        "transformers.models.gemma4.modeling_gemma4:Gemma4TextAttention",
        "transformers.models.gemma4.modeling_gemma4:Gemma4TextDecoderLayer",
        "transformers.modeling_layers:GradientCheckpointingLayer",
    ),
)

kv_carrier.share_by_argument(patch, "gemma4", "Gemma4")


@patch.probe
def gradients_depend_on_checkpointing() -> Observation:
    """Compare the gradients of a tiny model with and without reentrant checkpointing."""
    return kv_sharing.observe_reentrant("gemma4")
