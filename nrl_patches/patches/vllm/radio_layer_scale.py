"""The LayerScale of a RADIO vision tower is never loaded, and is noise under `load_format="dummy"`.

Problem: `RadioModel.load_weights` (model_executor/models/radio.py) skips every `ls1` and `ls2` of the weight stream,
    although each block multiplies its two residual branches by parameters of these names. A dummy load fills them with
    small random numbers, and nothing writes them afterwards.
Hit by: Nemotron Nano VL, Nemotron Omni and others with a RADIO tower. Loaded from disk, a checkpoint with LayerScale
    runs with 1.0 instead of its values; with dummy weights and a refit, every branch is multiplied by about 0.001, also
    for checkpoints that folded LayerScale into their weights. Wrong image features, no error.
Fix: the dummy load leaves the two parameters alone, so that they keep what the constructor gave them, which is right
    for a folded checkpoint. What the stream does carry is written, in whichever batch it comes (`ls1`, `ls1.gamma`,
    `layer_scale1.lambda1`, …). Nothing is reset for lack of an entry. Level-2 sleep, which saves buffers only, saves
    the parameters too, as each lends its memory to a non-persistent buffer.
Remove when: `RadioModel.load_weights` writes LayerScale and the dummy load leaves it alone in every supported release;
    0.33.0, the newest that was measured, does neither.

With this patch you no longer need to force `load_format="auto"`, or to rewrite radio.py on disk as NeMo RL does. `auto`
never helped with explicit values. If radio.py has been rewritten, this patch reports `drifted` and is not applied: the
rewrite resets what a batch does not contain.

Two limits. The last write wins, whatever its source: an engine that once received explicit values, from a stream, in
kernel format or as `sharded_state`, keeps them when a folded checkpoint follows. And a tower that is copied or cast to
another dtype lends its memory only from its next dummy load or `load_weights` on, one that was built before the patch
from its next `load_weights` on; level-2 sleep before that loses the scales, as it does without the patch.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import dummy_load, radio

if TYPE_CHECKING:
    import torch

patch = Patch(
    __name__,
    affected="vllm>=0.11.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/39767",
        "https://github.com/NVIDIA-NeMo/RL/pull/3990",
    ),
    opt_out="NRL_DISABLE_VLLM_RADIO_LAYER_SCALE_PATCH",
    relies_on=(
        "vllm.model_executor.models.radio:RadioModel",
        "vllm.model_executor.model_loader.weight_utils:initialize_dummy_weights",
        "vllm.model_executor.model_loader.weight_utils:initialize_single_dummy_weight",
    ),
)

patch.fix(
    "vllm.model_executor.models.radio:RadioModel.__init__",
    guard=lambda init: mismatch(init, parameters="self config", attributes="RadioInternVisionModel model"),
)(radio.make_lenders)

patch.fix("vllm.model_executor.model_loader.dummy_loader:DummyModelLoader.load_weights", guard=radio.fills)(
    radio.spare_scales
)

patch.fix("vllm.model_executor.models.radio:RadioModel.load_weights", guard=radio.skips_layer_scale)(
    radio.write_entries
)


@patch.probe
def layer_scale_is_noise_or_lost() -> Observation:
    """Dummy-load a tower of one block whose checkpoint has the first scale folded, and refit it with the second."""
    import torch
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    if find_spec("vllm.model_executor.models.radio") is None:  # Up to 0.10.2, whose dummy loader is there already.
        return Observation(present=False, evidence={"absent": "vllm.model_executor.models.radio"})
    from vllm.model_executor.models import radio as upstream

    def inner(**_: Any) -> torch.nn.Module:  # A real block needs vLLM's process groups; the scales are all it is about.
        block = torch.nn.Module()
        block.ls1, block.ls2 = (torch.nn.Parameter(torch.ones(1), requires_grad=False) for _ in range(2))
        model = torch.nn.Module()
        model.encoder = torch.nn.Module()
        model.encoder.layers = torch.nn.ModuleList([block])
        return model

    pixels = {"input_scale": 1.0, "norm_mean": [0.5], "norm_std": [0.5]}  # For 0.11.0, which normalises in the tower.
    with mock.patch.object(upstream, "RadioInternVisionModel", inner):
        tower = upstream.RadioModel(SimpleNamespace(teachers=None, **pixels))
    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(tower, dummy_load.UNQUANTIZED)
    tower.load_weights([("radio_model.model.blocks.0.ls2.gamma", torch.tensor([0.5]))])
    seen = {name: getattr(tower.model.encoder.layers[0], name).item() for name in ("ls1", "ls2")}
    return Observation(seen != {"ls1": 1.0, "ls2": 0.5}, seen)
