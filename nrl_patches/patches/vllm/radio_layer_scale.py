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

import re
from collections.abc import Callable, Iterable
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
    affected="vllm>=0.11.0,<0.34",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/39767",
        "https://github.com/NVIDIA-NeMo/RL/pull/3990",
    ),
    opt_out="NRL_DISABLE_VLLM_RADIO_LAYER_SCALE_PATCH",
)

ENTRY = re.compile(r"radio_model\.model\.blocks\.(?P<block>\d+)\.(?:ls|layer_scale)(?P<branch>[12])(?:\.\w+)?")


@patch.fix(
    "vllm.model_executor.models.radio:RadioModel.__init__",
    guard=lambda init: mismatch(init, parameters="self config", attributes="RadioInternVisionModel model"),
)
def make_lenders(init: Callable[..., Any]) -> Callable[..., Any]:
    """Build a constructor whose blocks lend their scales, see :func:`nrl_patches.patches._shared.radio.lend`.

    Args:
        init: The constructor of vLLM's ``RadioModel``.
    """

    def init_and_lend(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for block in self.model.encoder.layers:
            radio.lend(block)

    return init_and_lend


def fills(load_weights: Callable[..., Any]) -> str | None:
    """Check that the fill happens in the function itself, in one of the two ways that releases have.

    Args:
        load_weights: The ``load_weights`` of vLLM's dummy loader.

    Returns:
        None if it does, otherwise the difference.
    """
    mismatches = [
        mismatch(load_weights, parameters="self model", attributes=function)
        for function in ("initialize_single_dummy_weight", "initialize_dummy_weights")  # The latter up to 0.29.0.
    ]
    return mismatches[0] if all(mismatches) else None


@patch.fix("vllm.model_executor.model_loader.dummy_loader:DummyModelLoader.load_weights", guard=fills)
def spare_scales(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a dummy load after which every scale has the value that it had before.

    Args:
        load_weights: The ``load_weights`` of vLLM's dummy loader.
    """

    def load_weights_but_scales(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # That they are lent distinguishes the scales of RADIO from parameters of other models that are named `ls1`.
        lent = [(block, name) for block in model.modules() for name in radio.SCALES if f"{name}_lent" in block._buffers]
        before = [block._parameters[name].detach().clone() for block, name in lent]
        result = load_weights(self, model, *args, **kwargs)
        for (block, name), value in zip(lent, before, strict=True):
            block._parameters[name].data.copy_(value)
            radio.lend(block)
        return result

    return load_weights_but_scales


def skips_layer_scale(load_weights: Callable[..., Any]) -> str | None:
    """Check that the loader drops ``ls1`` and ``ls2``, as in every release.

    Args:
        load_weights: The ``load_weights`` of vLLM's ``RadioModel``.

    Returns:
        None if it does, otherwise the difference.
    """
    missing = mismatch(load_weights, parameters="self weights", attributes="named_parameters")
    if missing is None and frozenset(radio.SCALES) not in load_weights.__code__.co_consts:
        return "does not skip ls1 and ls2"
    return missing


@patch.fix("vllm.model_executor.models.radio:RadioModel.load_weights", guard=skips_layer_scale)
def write_entries(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader that writes LayerScale itself and leaves the rest to the original.

    Args:
        load_weights: The ``load_weights`` of vLLM's ``RadioModel``.
    """

    def load_layer_scale_too(self: Any, weights: Any) -> set[str]:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        layers = self.model.encoder.layers
        for block in layers:
            radio.leave_layerwise_reload(block)
            # Again: a cast or a copy cuts the buffers off, and up to 0.25.1 a reload makes them persistent.
            radio.lend(block)
        rest: list[tuple[str, torch.Tensor]] = []
        written: set[str] = set()
        stream: Iterable[tuple[str, torch.Tensor]] = weights.items() if isinstance(weights, dict) else weights
        for name, weight in stream:
            entry = ENTRY.fullmatch(name)
            if entry is None or int(entry["block"]) >= len(layers):  # A shortened tower drops the blocks it lacks.
                rest.append((name, weight))
                continue
            own = getattr(layers[int(entry["block"])], f"ls{entry['branch']}")
            getattr(own, "weight_loader", default_weight_loader)(own, weight)
            written.add(f"model.encoder.layers.{entry['block']}.ls{entry['branch']}")
        return set(load_weights(self, rest)) | written

    return load_layer_scale_too


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
