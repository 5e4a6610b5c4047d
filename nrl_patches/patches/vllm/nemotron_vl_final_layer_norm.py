"""The layer norm between the RADIO tower and the projector of Nemotron VL is missing, and its weights are dropped.

Problem: checkpoints that were trained with multi-token prediction have `vision_projector.vision_final_layernorm`, which
    their own code applies to the features of the tower. `NemotronH_Nano_VL_V2` (model_executor/models/
    nano_nemotron_vl.py) has no such module, and its `load_weights` passes over names that it does not know.
Hit by: Nemotron 3 Super Omni and others with `num_nextn_predict_layers` and a RADIO tower, from disk or by a refit:
    image features are not normalised, so log-probabilities differ from the trainer's. No error, nothing in the log.
Fix: the model gets the layer norm, under upstream's name and condition, applied to what the tower returns in bfloat16
    and written from the stream, in whichever batch it comes; the name without `vision_projector.` is taken too.
Remove when: no supported release is older than vLLM 0.32.0.

NeMo RL rewrites ten places of the file for it; if the file has the module already, this patch reports `drifted`. The
module is not named by `get_mm_mapping`, which matters to LoRA in the connector only.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import nemotron_vl

patch = Patch(
    __name__,
    affected="vllm>=0.11.0,<0.32.0",
    upstream=(
        "https://github.com/NVIDIA-NeMo/RL/pull/4036",
        "https://github.com/NVIDIA-NeMo/RL/pull/4064",
    ),
    opt_out="NRL_DISABLE_VLLM_NEMOTRON_VL_FINAL_LAYER_NORM_PATCH",
)

MODEL = "vllm.model_executor.models.nano_nemotron_vl:NemotronH_Nano_VL_V2"


def lacks_the_norm(init: Callable[..., Any]) -> str | None:
    """Check that a constructor makes tower and projector, and no layer norm between them.

    Args:
        init: The constructor of vLLM's ``NemotronH_Nano_VL_V2``.

    Returns:
        None if it does, otherwise the difference.
    """
    if "vision_final_layernorm" in init.__code__.co_names:
        return "makes a layer norm itself"
    return mismatch(init, parameters="self vllm_config", attributes="vision_model mlp1 vit_hidden_size")


@patch.fix(f"{MODEL}.__init__", guard=lacks_the_norm)
def make_the_norm(init: Callable[..., Any]) -> Callable[..., Any]:
    """Build a constructor whose model normalises what its tower returns.

    Args:
        init: The constructor of vLLM's ``NemotronH_Nano_VL_V2``.
    """

    def init_with_norm(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        nemotron_vl.add_norm(self)

    return init_with_norm


@patch.fix(
    f"{MODEL}.load_weights",
    guard=lambda load: mismatch(load, parameters="self weights", attributes="mlp1 vision_model language_model"),
)
def load_the_norm(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader that writes the layer norm and leaves the rest of the stream to the original.

    Args:
        load_weights: The ``load_weights`` of vLLM's ``NemotronH_Nano_VL_V2``.
    """

    def load_norm_too(self: Any, weights: Any) -> Any:
        return load_weights(self, nemotron_vl.written(self, weights))

    return load_norm_too


@patch.probe
def features_are_not_normalised() -> Observation:
    """Load the real model around a tower that returns its input, and look at what its projector is given."""
    if find_spec("vllm.model_executor.models.radio") is None:  # Up to 0.10.2.
        return Observation(present=False, evidence={"absent": "vllm.model_executor.models.radio"})
    model = nemotron_vl.tiny_model()
    model.load_weights(nemotron_vl.stream(scale=3.0, shift=1.0))
    seen = nemotron_vl.features(model, [1.0, -1.0, 1.0, -1.0])
    return Observation(seen != [4.0, -2.0, 4.0, -2.0], {"projector is given": str(seen)})
