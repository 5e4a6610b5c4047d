"""The layers of DeepSeek and GLM-5 do not gather a single token that is decoded under sequence-parallel experts.

Problem: between decoder layers `DeepseekV2DecoderLayer.forward` (models/deepseek_v2.py) hands on the rank's share of
    the tokens, and the next layer tells a share from all tokens by their number. Of one token, a share has one row too:
    it is not gathered, and all ranks but the first attend to padding.
Hit by: decoding with a batch of one token per data parallel rank, with `tensor_parallel_size` and `data_parallel_size`
    above 1 and `enable_expert_parallel`. Upstream and NeMo RL saw it in GLM-5.1 and 5.2: the first token is right, the
    log-probabilities of the others collapse. DeepSeek-V2 and V3 have the same layer.
Advice: without expert parallelism, or with a tensor or data parallel size of 1. NeMo RL rewrites the layer so that GLM
    gathers after each one, as 0.24.0 did.
Remove when: no supported release tells them apart by their number. 0.33.0 does; vLLM pull request 50155 is not in it.

The probe runs the real layer as the first of two ranks, with the collectives replaced. That the output is garbage is
upstream's report: it needs four GPUs, and was not measured here.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from nrl_patches import Defect, Observation
from nrl_patches.patches._shared import kv_transfers

if TYPE_CHECKING:
    import torch

defect = Defect(
    __name__,
    affected="vllm>=0.25.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/issues/50154",
        "https://github.com/vllm-project/vllm/pull/50155",
    ),
    advice="Do not combine tensor, data and expert parallelism for DeepSeek-V2 and V3 and GLM-5.1 and 5.2.",
    relies_on=("vllm.model_executor.models.deepseek_v2:DeepseekV2DecoderLayer.forward",),
    victims={"DeepSeek-V2 and V3, GLM-5.1 and 5.2": "vllm>=0.25.0,<=0.33.0"},
)

_MODULE = "vllm.model_executor.models.deepseek_v2"


@defect.probe
def share_of_one_token_is_not_gathered() -> Observation:
    """Send one token through a layer, and what it hands on through the next; count what is gathered."""
    if find_spec("vllm.v1") is None or kv_transfers.scheduler_class() is None or find_spec(_MODULE) is None:
        return Observation(present=False, evidence={"absent": _MODULE})
    import torch
    from vllm.model_executor.models import deepseek_v2

    names = ("tensor_model_parallel_all_gather", "tensor_model_parallel_reduce_scatter", "sequence_parallel_chunk")
    if not all(hasattr(deepseek_v2, name) for name in names):
        return Observation(present=False, evidence={"absent": "shares between layers"})
    gathered: list[int] = []

    def gather(share: torch.Tensor, *_: Any) -> torch.Tensor:
        gathered.append(len(share))
        return torch.cat([share, share])

    def halve(tokens: torch.Tensor, *_: Any) -> torch.Tensor:
        return tokens[: (len(tokens) + 1) // 2]

    layer = SimpleNamespace(
        use_sequence_parallel_moe=True,
        use_mha=False,
        layer_idx=1,
        routed_scaling_factor=1.0,
        input_layernorm=lambda hidden, *residual: (hidden, *residual) if residual else hidden,
        post_attention_layernorm=lambda hidden, residual: (hidden, residual),
        self_attn=lambda _positions, hidden, *_: hidden,
        mlp=lambda hidden, **_: hidden,
    )
    replaced: dict[str, Any] = dict(zip(names, (gather, halve, halve), strict=True))
    replaced["get_tensor_model_parallel_world_size"] = lambda: 2
    seen = {}
    with mock.patch.dict(vars(deepseek_v2), replaced):
        for count in (3, 1):
            gathered.clear()
            positions = torch.arange(count)
            handed_on = deepseek_v2.DeepseekV2DecoderLayer.forward(layer, positions, torch.zeros(count, 4), None)
            deepseek_v2.DeepseekV2DecoderLayer.forward(layer, positions, *handed_on)
            seen[count] = len(gathered)
    return Observation(seen == {3: 1, 1: 0}, {"gathered_of_3_tokens": seen[3], "gathered_of_1_token": seen[1]})
