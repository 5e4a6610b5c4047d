"""The KV-shared layers of Gemma 3n raise KeyError when FSDP2 shards the decoder layers.

Problem: `Gemma3nTextModel.forward` (models/gemma3n/modeling_gemma3n.py) hands the shared keys and values to its layers
    in a plain dict. FSDP2's hooks rebuild every dict among a layer's arguments, so each layer writes into its own copy.
Hit by: `fully_shard(layer)` for the decoder layers, the usual FSDP2 recipe. KeyError in the first shared layer.
Fix: the text model hands the states down in an object that FSDP2 leaves alone.
Remove when: no supported release is older than transformers 5.9.0.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import kv_carrier, kv_sharing

patch = Patch(
    __name__,
    affected="transformers>=5.6.0,<5.9.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/45663",
        "https://github.com/huggingface/transformers/pull/45912",
    ),
    opt_out="NRL_DISABLE_GEMMA3N_KV_SHARING_FSDP2_PATCH",
)

kv_carrier.share_by_argument(patch, "gemma3n", "Gemma3n", guard=kv_carrier.check_plain_dict)


@patch.probe
def sharded_layers_share_nothing() -> Observation:
    """Run a tiny model with sharded layers on one gloo rank."""
    return kv_sharing.observe_fsdp2("gemma3n")
