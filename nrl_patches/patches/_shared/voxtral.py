"""A tiny Voxtral of vLLM, for the probe of its table of positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch

_CONFIG = {
    "d_model": 8,
    "encoder_layers": 0,
    "max_source_positions": 4,
    "num_mel_bins": 4,
    "scale_embedding": False,
    "window_size": 16,
    "sampling_rate": 16000,
}


def model(change: Callable[[Any], Any] = lambda kind: kind) -> Any:
    """Make the real model around its real encoder, without layers, and a language model that takes everything.

    Args:
        change: Takes the class and returns the one that is made.

    Returns:
        The model, which cannot be called.
    """
    import torch
    from vllm.distributed import parallel_state

    upstream = _upstream()
    # Its own constructor wants a tokenizer and a language model.
    kind = change(upstream.VoxtralForConditionalGeneration)
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    config = SimpleNamespace(hf_config=SimpleNamespace(**_CONFIG), dtype=torch.float32)
    with mock.patch.object(parallel_state, "get_pp_group", return_value=mock.Mock(rank_in_group=0, world_size=1)):
        made.whisper_encoder = upstream.VoxtralEncoderModel(SimpleNamespace(model_config=config, quant_config=None))
    made.audio_language_adapter = torch.nn.Module()
    made.language_model = torch.nn.Module()
    made.language_model.load_weights = _take_all
    return made


def _upstream() -> ModuleType:
    messages = import_module("mistral_common.protocol.instruct.messages")
    # Older releases of vLLM import names that newer ones of mistral_common have dropped, and no probe uses.
    for name in ("AudioChunk", "RawAudio", "TextChunk", "UserMessage"):
        if not hasattr(messages, name):
            setattr(messages, name, mock.Mock())
    return import_module("vllm.model_executor.models.voxtral")


def _take_all(weights: Any) -> set[str]:
    return {name for name, _ in weights}


def table(made: Any) -> torch.Tensor:
    """Return the positions of a model.

    Args:
        made: The model.
    """
    weight: torch.Tensor = made.whisper_encoder.whisper_encoder.embed_positions.weight.detach()
    return weight


def fill(made: Any, config: Any) -> None:
    """Load noise.

    Args:
        made: The model.
        config: Its configuration, as far as the loader reads it.
    """
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(made, config)


def stream(made: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Send what Mistral's checkpoint has of the encoder without layers, and a tensor of the language model.

    Args:
        made: The model.

    Yields:
        Names of Mistral's format, and tensors of ones.
    """
    import torch

    own = made.whisper_encoder.whisper_encoder
    prefix = "mm_whisper_embeddings.whisper_encoder."
    for index, layer in enumerate((own.conv1, own.conv2)):
        for name, weight in layer.named_parameters():
            yield f"{prefix}conv_layers.{index}.{name}", torch.ones(weight.shape)
    for name, weight in own.layer_norm.named_parameters():
        yield f"{prefix}transformer.norm.{name}", torch.ones(weight.shape)
    yield "tok_embeddings.weight", torch.ones(2, 2)
