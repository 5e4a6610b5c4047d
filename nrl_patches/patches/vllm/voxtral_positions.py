"""The positions of Voxtral's audio encoder are noise after a dummy load, and no refit writes them.

Problem: the encoder keeps a table of sinusoids, computed in its constructor, in the parameter
    `embed_positions.weight`. Mistral's checkpoints do not have it, and `VoxtralForConditionalGeneration.load_weights`
    (model_executor/models/voxtral.py) says that it was loaded all the same, to pass vLLM's check.
Hit by: Voxtral that starts with `load_format="dummy"`, or wakes from sleep level 2, and receives its weights by a
    refit: audio is heard without positions. No error.
Fix: a stream that does not carry the table is given it, computed from its shape as the constructor does, so that it
    goes through the weight loader as if it had been sent; by layerwise reload too.
Remove when: the model writes the table itself, or keeps it in a buffer, in every supported release; 0.33.0, the newest
    that was measured, does neither.

Each batch of a stream writes the table, as each may be the only one. Encoders that learn their positions, or have
rotary ones, are left alone, and so is Whisper, whose checkpoints have the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation, Patch, mismatch

if TYPE_CHECKING:
    import torch

patch = Patch(
    __name__,
    affected="vllm>=0.10.0,<=0.33.0",
    upstream=("https://github.com/vllm-project/vllm/pull/20970",),
    opt_out="NRL_DISABLE_VLLM_VOXTRAL_POSITIONS_PATCH",
    relies_on=(
        "vllm.model_executor.models.voxtral:VoxtralEncoderModel.load_weight",
        "vllm.model_executor.models.whisper:WhisperEncoder.__init__",
    ),
)

NAME = "whisper_encoder.embed_positions.weight"


def says_that_it_was_loaded(load_weights: Callable[..., Any]) -> str | None:
    """Check that the loader names the table without writing it.

    Args:
        load_weights: The ``load_weights`` of vLLM's ``VoxtralForConditionalGeneration``.

    Returns:
        None if it does, otherwise the difference.
    """
    if f"whisper_encoder.{NAME}" not in load_weights.__code__.co_consts:
        return "does not name the table of positions"
    return mismatch(load_weights, parameters="self weights", attributes="language_model")


@patch.fix(
    "vllm.model_executor.models.voxtral:VoxtralForConditionalGeneration.load_weights", guard=says_that_it_was_loaded
)
def send_the_table(load_weights: Callable[..., Any]) -> Callable[..., Any]:
    """Build a loader whose stream has the table.

    Args:
        load_weights: The ``load_weights`` of vLLM's ``VoxtralForConditionalGeneration``.
    """

    def with_table(self: Any, weights: Any) -> Iterator[tuple[str, torch.Tensor]]:
        from vllm.model_executor.models.whisper import sinusoids

        sent = False
        for name, weight in weights.items() if isinstance(weights, dict) else weights:
            sent = sent or name.endswith(NAME)
            yield name, weight
        encoder = getattr(self.whisper_encoder, "whisper_encoder", None)
        table = getattr(encoder, "embed_positions", None)
        kind = getattr(encoder, "pos_embed_type", "sinusoidal")  # Up to 0.13.0 there is one kind.
        if table is not None and not sent and getattr(kind, "value", kind) == "sinusoidal":
            yield f"mm_whisper_embeddings.{NAME}", sinusoids(*table.weight.shape)

    def load_weights_with_table(self: Any, weights: Any) -> Any:
        return load_weights(self, with_table(self, weights))

    return load_weights_with_table


@patch.probe
def positions_are_noise() -> Observation:
    """Dummy-load the real encoder without layers, and refit it through the real model class."""
    if find_spec("vllm.model_executor.models.voxtral") is None:
        return Observation(present=False, evidence={"absent": "vllm.model_executor.models.voxtral"})
    from nrl_patches.patches._shared import dummy_load, voxtral

    model = voxtral.model()
    before = voxtral.table(model).clone()
    voxtral.fill(model, dummy_load.UNQUANTIZED)
    model.load_weights(voxtral.stream(model))
    wrong = (voxtral.table(model) - before).abs().max().item()
    return Observation(wrong > 0, {"largest difference": wrong})
