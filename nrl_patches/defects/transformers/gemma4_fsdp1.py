"""Gemma 4 has no defect of its own under FSDP1, which Axolotl rules out for QLoRA since it runs out of memory.

Problem: none that was found. FSDP1 (`FullyShardedDataParallel`) leaves the arguments of a layer alone, so the shared
    keys and values arrive even on the releases on which FSDP2 loses them. Axolotl's model notes list FSDP1 as not
    working for Gemma 4, out of memory while the weights are dequantised and sharded: a matter of QLoRA on GPUs, which
    no probe here can see. What FSDP1 refuses is refused for every model: parameters of different dtypes in one unit,
    and frozen ones beside trained ones unless `use_orig_params=True`.
Hit by: QLoRA of the larger Gemma 4 models in Axolotl (reported, not measured). Freezing the vision tower or anything
    else inside a unit with `use_orig_params=False`: ValueError when the model is wrapped.
Advice: use FSDP2 with `Gemma4TextDecoderLayer` as the layer to wrap, from transformers 5.9.0 on or with this package's
    patch; who stays with FSDP1 passes `use_orig_params=True`.
Remove when: FSDP1 is gone from torch; it is deprecated.

Measured with torch 2.13.0 and two ranks on transformers 5.5.2, 5.8.1, 5.9.0 and 5.24.0: the loss of the unsharded model
is 4.16809, under FSDP1 it is the same in float32, also with most of the model frozen, and 4.16931 with bfloat16
parameters. The gradients are what the probe compares. The range is empty because it finds the defect on no release.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from nrl_patches import Defect, Observation
from nrl_patches.patches._shared import kv_sharing, two_ranks

defect = Defect(
    __name__,
    affected="transformers<0",
    upstream=(
        "https://github.com/axolotl-ai-cloud/axolotl/pull/3584",
        "https://github.com/axolotl-ai-cloud/axolotl/blob/main/docs/agents/model_architectures.md",
    ),
    advice="Shard Gemma 4 by FSDP2; under FSDP1 pass use_orig_params=True, and do not expect QLoRA to fit.",
)

_ROUNDING = 1e-4


@defect.probe
def gradients_differ_under_fsdp1() -> Observation:
    """Compare the gradients of a tiny model with those under FSDP1 on two ranks that see the same tokens."""
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    try:
        from transformers.models.gemma4.modeling_gemma4 import Gemma4TextDecoderLayer
    except ImportError:
        return Observation(present=False, evidence={"absent": "transformers.models.gemma4"})
    policy = partial(transformer_auto_wrap_policy, transformer_layer_cls={Gemma4TextDecoderLayer})

    def learn(model: Any) -> None:
        tokens = torch.arange(1, 17).view(1, -1)
        model(tokens, labels=tokens, use_cache=False).loss.backward()

    def gradient(model: Any) -> torch.Tensor:
        # A wrapped module's names differ only by what the wrapper puts into them, which sorting must not see.
        named = ((n.replace("_fsdp_wrapped_module.", ""), w.grad) for n, w in model.named_parameters())
        return torch.cat([g.flatten() for _, g in sorted(named, key=lambda pair: pair[0]) if g is not None])

    whole = kv_sharing.tiny_model("gemma4")
    learn(whole)
    expected = gradient(whole)

    def compare() -> dict[str, Any]:
        model = FullyShardedDataParallel(
            kv_sharing.tiny_model("gemma4"),
            auto_wrap_policy=policy,
            use_orig_params=True,
            device_id=torch.device("cpu"),
        )
        learn(model)
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            found = gradient(model)
        return {"relative_gradient_error": ((found - expected).norm() / expected.norm()).item()}

    seen = two_ranks.run(compare)
    return Observation(not seen.get("relative_gradient_error", 1.0) < _ROUNDING, seen)
