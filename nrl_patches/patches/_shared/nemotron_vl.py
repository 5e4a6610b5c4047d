"""The layer norm of Nemotron VL's projector: the module, its weights in a stream, and a tiny model for the probe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch

NAME = "vision_final_layernorm"
PREFIXES = (f"vision_projector.{NAME}.", f"{NAME}.")


class NormalisesFeatures:
    """A forward hook of a tower, in a class so that a copy of the model has a hook with the copied layer norm.

    Attributes:
        norm: The layer norm.
    """

    def __init__(self, norm: torch.nn.Module) -> None:
        self.norm = norm

    def __call__(self, *call: Any) -> Any:
        """Normalise the features, which in 0.11.0 are all that a tower returns.

        Args:
            call: The tower, what it was given, and what it returned: the features, or a summary and the features.

        Returns:
            The same with normalised features.
        """
        returned = call[-1]
        import torch

        if isinstance(returned, tuple):
            return (*returned[:-1], self.norm(returned[-1].to(torch.bfloat16)))
        return self.norm(returned.to(torch.bfloat16))


def add_norm(model: Any) -> None:
    """Give a model the layer norm, if its checkpoint has one by upstream's rule.

    Args:
        model: A ``NemotronH_Nano_VL_V2`` that is otherwise complete.
    """
    import torch

    config = model.config
    if not (getattr(config.text_config, "num_nextn_predict_layers", 0) or 0) > 0:
        return
    beside = next(model.mlp1.parameters(), None)
    if beside is None:  # An engine for text alone has neither tower nor projector.
        return
    epsilon = getattr(getattr(config, "vision_config", config), "layer_norm_eps", 1e-6)
    norm = torch.nn.LayerNorm(config.vit_hidden_size, eps=epsilon).to(beside.dtype)
    setattr(model, NAME, norm)
    model.vision_model.register_forward_hook(NormalisesFeatures(norm))


def written(model: Any, weights: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Write the layer norm from a stream as it passes.

    Args:
        model: The model; one without the layer norm, which may be older than the patch, drops its weights as before.
        weights: The names and tensors.

    Yields:
        What is not the layer norm's.
    """
    import torch
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    stream: Iterable[tuple[str, torch.Tensor]] = weights.items() if isinstance(weights, dict) else weights
    own = dict(getattr(model, NAME).named_parameters()) if hasattr(model, NAME) else {}
    for name, weight in stream:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None or not own:
            yield name, weight
            continue
        parameter = own[name.removeprefix(prefix)]
        with torch.no_grad():
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)


def tiny_model(layers: int = 1, change: Any = None) -> Any:
    """Make the real model around a language model without weights and a tower that returns its pixels.

    Args:
        layers: How many layers predict further tokens.
        change: Takes the class and returns the one that is made, which is the same if left out.

    Returns:
        The model.
    """
    import torch

    upstream = _upstream()
    kind = upstream.NemotronH_Nano_VL_V2
    alone = "_" not in kind.extract_feature.__code__.co_varnames

    def see(pixels: torch.Tensor, *_: Any, **__: Any) -> Any:
        features = pixels.flatten(1).unsqueeze(1)
        return features if alone else (None, features)

    tower, language = torch.nn.Module(), torch.nn.Module()
    tower.forward = see
    language.config = mock.Mock(dtype=torch.bfloat16, torch_dtype=torch.bfloat16)
    language.make_empty_intermediate_tensors = None
    for part in (tower, language):
        part.load_weights = lambda weights: {name for name, _ in weights}
    config = mock.MagicMock(
        force_image_size=2, patch_size=1, downsample_ratio=1.0, vit_hidden_size=4, projector_hidden_size=4
    )
    config.sound_config = None
    config.vision_config.layer_norm_eps = 0.0
    config.text_config.configure_mock(hidden_size=4, num_nextn_predict_layers=layers)
    vllm_config = mock.MagicMock(use_v2_model_runner=False)
    vllm_config.model_config.hf_config = config
    vllm_config.model_config.multimodal_config.mm_encoder_only = False
    with (
        mock.patch.object(upstream, "init_vllm_registered_model", return_value=language),
        mock.patch.object(kind, "get_vit_model_from_radio_config", return_value=tower),
        mock.patch.object(upstream, "RMSNorm", torch.nn.Identity),
        mock.patch.object(upstream, "ReLUSquaredActivation", torch.nn.Identity),
        mock.patch.object(upstream, "cached_tokenizer_from_config", mock.MagicMock(), create=True),
    ):
        return (change(kind) if change else kind)(vllm_config=vllm_config)


def stream(scale: float, shift: float, prefix: str = PREFIXES[0]) -> Iterator[tuple[str, torch.Tensor]]:
    """Send a layer norm.

    Args:
        scale: Its weight.
        shift: Its bias.
        prefix: What its names begin with.

    Yields:
        The two names and tensors.
    """
    import torch

    yield f"{prefix}weight", torch.full((4,), scale, dtype=torch.bfloat16)
    yield f"{prefix}bias", torch.full((4,), shift, dtype=torch.bfloat16)


def features(model: Any, pixels: list[float]) -> list[float]:
    """Return what the projector of a tiny model is given for an image of one patch.

    Args:
        model: The model, whose projector is replaced by one that returns its input.
        pixels: The four values of the patch.
    """
    import torch

    model.mlp1 = torch.nn.Identity()
    with torch.no_grad():
        seen: list[float] = model.extract_feature(torch.tensor(pixels).view(1, 4, 1, 1)).flatten().tolist()
    return seen


def _upstream() -> ModuleType:
    import_module("vllm.model_executor.models.radio")  # And transformers, which looks whether torchvision is there.
    absent = () if find_spec("torchvision") else ("torchvision", "torchvision.transforms")
    try:
        # Only the processor of images needs it, and no probe has one.
        sys.modules.update({name: mock.MagicMock() for name in absent})
        return import_module("vllm.model_executor.models.nano_nemotron_vl")
    finally:
        for name in absent:
            del sys.modules[name]
