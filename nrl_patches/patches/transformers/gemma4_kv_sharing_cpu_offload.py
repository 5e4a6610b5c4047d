"""The KV-shared layers of Gemma 4 raise KeyError when accelerate offloads the model.

Problem: `Gemma4TextModel.forward` (models/gemma4/modeling_gemma4.py) hands the shared keys and values to its layers
    in a dict or UserDict. accelerate's hooks rebuild every mapping among the arguments of the module that they are on,
    so each layer writes into its own copy.
Hit by: `accelerate.cpu_offload` and `disk_offload`, with and without a cache. KeyError in the first shared layer.
Fix: the text model hands the states down in an object that accelerate leaves alone.
Remove when: no supported release is older than transformers 5.23.0, whose mapping is moved and not rebuilt.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import kv_carrier, kv_sharing

patch = Patch(
    __name__,
    affected="transformers>=5.5.2,<5.23.0",
    upstream=("https://github.com/huggingface/transformers/pull/45312",),
    opt_out="NRL_DISABLE_GEMMA4_KV_SHARING_CPU_OFFLOAD_PATCH",
)

kv_carrier.share_by_argument(patch, "gemma4", "Gemma4")


@patch.probe
def layers_with_copies_share_nothing() -> Observation:
    """Run a tiny model whose layers get copies of all mappings."""
    return kv_sharing.observe_copied_mappings("gemma4")
