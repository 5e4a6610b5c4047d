"""A model with tied embeddings fails when two spans of transformers' releases shard it by tensor parallelism.

Problem: in 4.52.2 to 4.55.4 (4.54.0 is right), `tp_plan="auto"` installs the hooks of `lm_head`'s style, but a tied
    head is no entry of the checkpoint: its weight becomes the plain embedding's again, and the first forward pass
    raises ("got mixed torch.Tensor and DTensor"). In 5.14.0 and 5.14.1, every rank computes all logits with the whole
    tied weight and gathers them: the logits have the vocabulary once per rank.
Hit by: `tie_word_embeddings=True` with `tp_plan="auto"` or `DistributedConfig(tp_size=...)`: Llama 3.2 and the small
    Qwens; the probe runs Llama. On 4.52.4 and 4.55.4 the same model without the tie runs.
Advice: use 4.56.0 to 5.13.1, or 5.15.0 and later. Nothing is wrong with tied weights under NeMo RL's plan, see below.
Remove when: no supported release is older than transformers 5.15.0.

In 4.47.0 to 4.48.3 the logits are right, and the embedding's gradient is 62 % off. That is not declared, as where it
ends is not known: 4.49.0 does not load the model on two ranks, 4.50.0 to 4.50.3 want an accelerator, 4.51.0 is right.

NeMo RL warned that DTensor with TP > 1 does not respect tied weights (its issue 227), allowed only TP 1, and dropped
the warning in pull request 700. Measured with two ranks, torch 2.13.0 and transformers 5.24.0: torch's
`parallelize_module` with the plan that NeMo RL had for Llama leaves two separate parameters; tied again afterwards, as
NeMo RL does, the model has the logits (gap 6e-7) and the embedding's gradient (relative error 4e-7) of the unsharded
one. That is no defect, as long as somebody ties again. The other releases of transformers keep the tie themselves, with
the same gaps.
"""

from __future__ import annotations

import tempfile
from typing import Any

from nrl_patches import Defect, Observation
from nrl_patches.patches._shared import two_ranks
from nrl_patches.patches._shared.quiet import quiet

defect = Defect(
    __name__,
    affected=("transformers>=4.52.2,<4.54.0", "transformers>=4.54.1,<4.56.0", "transformers>=5.14.0,<5.15.0"),
    upstream=(
        "https://github.com/huggingface/transformers/pull/47503",
        "https://github.com/axolotl-ai-cloud/axolotl/pull/2999",
        "https://github.com/NVIDIA-NeMo/RL/issues/227",
        "https://github.com/NVIDIA-NeMo/RL/pull/700",
    ),
    advice="For tied embeddings under tensor parallelism, use transformers 4.56.0 to 5.13.1, or 5.15.0 and later.",
)

_ROUNDING = 1e-4


def _keywords() -> dict[str, Any]:
    try:
        from transformers.distributed import DistributedConfig
    except ImportError:
        return {"tp_plan": "auto"}
    if "tp_size" not in getattr(DistributedConfig, "__dataclass_fields__", {}):
        return {"tp_plan": "auto"}
    return {"distributed_config": DistributedConfig(tp_size=2)}


@defect.probe
def sharded_model_differs() -> Observation:
    """Compare logits and the embedding's gradient of a tiny tied model with those of the same model on two ranks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    torch.manual_seed(0)
    whole = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    for weight in whole.parameters():
        torch.nn.init.normal_(weight, std=0.3)

    def run(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.arange(1, 17).view(2, 8)
        answer = model(tokens, labels=tokens, use_cache=False)
        answer.loss.backward()
        found = answer.logits.detach(), model.model.embed_tokens.weight.grad
        logits, gradient = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in found)
        return logits, gradient

    logits, gradient = run(whole)
    with tempfile.TemporaryDirectory() as folder, quiet():
        whole.save_pretrained(folder)

        def compare() -> dict[str, Any]:
            model = LlamaForCausalLM.from_pretrained(folder, **_keywords())
            found, learnt = run(model)
            if found.shape != logits.shape:
                return {"shape": str(tuple(found.shape))}
            rows = len(learnt)  # Some releases have a plain tensor for the rows of this rank.
            first = rows * torch.distributed.get_rank() if rows < len(gradient) else 0
            expected = gradient[first : first + rows]
            gaps = (found - logits).abs().max(), (learnt - expected).norm() / expected.norm()
            return {"logit_gap": gaps[0].item(), "relative_gradient_error": gaps[1].item()}

        seen = two_ranks.run(compare)
    # Not the defect: such a release is asked in another way, or wants an accelerator.
    if {"TypeError", "ImportError"} & seen.keys() or "accelerator" in str(seen):
        raise RuntimeError(str(seen))
    return Observation(not all(isinstance(gap, float) and gap < _ROUNDING for gap in seen.values()), seen)
