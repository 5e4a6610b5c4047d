"""The KV-shared layers of Gemma 4 raise KeyError when FSDP2 shards the decoder layers.

Problem: `Gemma4TextModel.forward` (models/gemma4/modeling_gemma4.py) hands the shared keys and values to its layers
    in a plain dict. FSDP2's hooks rebuild every dict among a layer's arguments, so each layer writes into a copy of its
    own.
Hit by: `fully_shard(layer)` for the decoder layers, the usual FSDP2 recipe. KeyError in the first shared layer.
Fix: the text model hands the states down in an object that FSDP2 leaves alone; from 5.8.0, where it takes and returns
    them itself, in the `UserDict` that upstream chose in 5.9.0.
Remove when: no supported release is older than transformers 5.9.0.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, objection_unless
from nrl_patches.patches.transformers import _kv_sharing

patch = Patch(
    __name__,
    affected="transformers>=5.5.2,<5.9.0",
    upstream=("https://github.com/huggingface/transformers/pull/45312",),
    opt_out="NRL_DISABLE_GEMMA4_KV_SHARING_FSDP2_PATCH",
)


@patch.fix(
    "transformers.models.gemma4.modeling_gemma4:Gemma4TextModel.forward",
    guard=_kv_sharing.objection_unless_plain_dict,
)
def hand_down(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Choose the way in which this release lets the states travel."""
    if _kv_sharing.takes_mapping(forward):
        return _kv_sharing.hand_down_mapping(forward)
    return _kv_sharing.hand_down_states(forward)


patch.fix(
    "transformers.models.gemma4.modeling_gemma4:Gemma4TextAttention.forward",
    guard=lambda forward: objection_unless(
        forward, parameters="self shared_kv_states kwargs", attributes="store_full_length_kv"
    ),
)(_kv_sharing.read_from_argument)


@patch.probe
def sharded_layers_share_nothing() -> Observation:
    """Run a tiny model with sharded layers on one gloo rank."""
    return _kv_sharing.observe_fsdp2("gemma4")
