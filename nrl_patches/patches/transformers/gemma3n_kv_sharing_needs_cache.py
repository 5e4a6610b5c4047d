"""The KV-shared layers of Gemma 3n use projections that were never trained when there is no cache.

Problem: `Gemma3nTextAttention.forward` (models/gemma3n/modeling_gemma3n.py) takes the keys and values of a shared layer
    from its donor through the cache object only. Without one it falls back to the layer's own `k_proj` and `v_proj`,
    which no training ever touched.
Hit by: `use_cache=False`, training, and gradient checkpointing, which drops the cache on the way to the layer even
    where the caller requests it. Wrong logits and wrong gradients, no error.
Fix: the text model hands a carrier of the shared states down to its attentions, as upstream's fix does with a dict. The
    attention's code stays upstream's: it gets the carrier as its cache.
Remove when: no supported release is older than transformers 5.6.0.

transformers 4.53 to 4.55 have the defect in other code: see `gemma3n_kv_sharing_needs_cache_before_shared_layers.py`.
The carrier also takes the gradient back under reentrant checkpointing, and models are built without the unused
projections, whose gradients DDP would wait for.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import kv_carrier, kv_projections, kv_sharing

patch = Patch(
    __name__,
    affected="transformers>=4.56.0,<5.6.0",
    upstream=(
        "https://github.com/huggingface/transformers/pull/45312",
        "https://github.com/huggingface/transformers/issues/45242",
        "https://github.com/huggingface/transformers/pull/45336",
    ),
    opt_out="NRL_DISABLE_GEMMA3N_KV_SHARING_PATCH",
)

patch.fix(
    "transformers.models.gemma3n.modeling_gemma3n:Gemma3nTextModel.forward",
    guard=lambda forward: mismatch(forward, parameters="self use_cache kwargs"),
)(kv_carrier.hand_down_states)

patch.fix(
    "transformers.models.gemma3n.modeling_gemma3n:Gemma3nTextAttention.forward",
    guard=lambda forward: mismatch(
        forward, parameters="self past_key_values kwargs", attributes="shared_layers is_kv_shared_layer"
    ),
)(kv_carrier.read_through_cache)

kv_projections.drop_from(patch, "gemma3n", "Gemma3n")


@patch.probe
def logits_depend_on_the_cache() -> Observation:
    """Compare the logits of a tiny model with and without a cache."""
    if kv_sharing.before_shared_layers():
        return Observation(present=False, evidence={"absent": "shared_layers of the cache"})
    return kv_sharing.observe_missing_cache("gemma3n")
