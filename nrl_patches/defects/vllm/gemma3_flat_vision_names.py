"""Gemma 3's vision weights, as transformers names them since 5.6.0, are refused by vLLM.

Problem: transformers dropped `vision_model` from the names of SigLIP's weights: `vision_tower.encoder…` in memory and
    in what it saves. vLLM's `Gemma3ForConditionalGeneration` knows `vision_tower.vision_model.encoder…` only.
Hit by: a refit of Gemma 3 with images, and loading a checkpoint that transformers has saved: `ValueError: There is no
    module or parameter named 'vision_tower.encoder'`, up to 0.24.0 `KeyError`. Never in silence.
Advice: put the segment back into the names, as NeMo RL's `fix_gemma3_vision_weight_name` does.
Remove when: vLLM knows both in every supported release. 0.33.0 does not.

Older releases give no answer: up to 0.10.2 the tower asks for an attention backend, which needs a platform.

Not a patch, since a refit that fails at once needs one line of the trainer's, which may be there already.
"""

from __future__ import annotations

from importlib.util import find_spec

from nrl_patches import Defect, Observation
from nrl_patches.patches._shared import eagle_draft

defect = Defect(
    __name__,
    affected="vllm>=0.11.0,<=0.33.0",
    upstream=("https://github.com/NVIDIA-NeMo/RL/pull/2565",),
    advice="Rename vision_tower.* to vision_tower.vision_model.* in what you send or load, as NeMo RL does.",
    victims={"Gemma 3 with images": "vllm>=0.11.0,<=0.33.0"},
)

_MODULE = "vllm.model_executor.models.gemma3_mm"
_WEIGHT = "encoder.layers.0.layer_norm1.weight"


@defect.probe
def flat_name_is_refused() -> Observation:
    """Load one weight into the real tower by either name."""
    if find_spec(_MODULE) is None:
        return Observation(present=False, evidence={"absent": _MODULE})
    import torch
    from transformers import SiglipVisionConfig
    from vllm.model_executor.models import siglip
    from vllm.model_executor.models.utils import AutoWeightsLoader

    size = 64
    config = SiglipVisionConfig(
        hidden_size=size,
        intermediate_size=size,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=28,
        patch_size=14,
    )
    with eagle_draft.one_rank():
        model = torch.nn.Module()
        model.vision_tower = siglip.SiglipVisionModel(config, None, prefix="vision_tower")

        def refused(name: str) -> str:
            try:
                AutoWeightsLoader(model).load_weights([(name, torch.full((size,), 7.0))])
            except (KeyError, ValueError) as error:
                return type(error).__name__
            return ""

        nested, flat = refused(f"vision_tower.vision_model.{_WEIGHT}"), refused(f"vision_tower.{_WEIGHT}")
    return Observation(not nested and bool(flat), {"with_vision_model": nested, "without": flat})
