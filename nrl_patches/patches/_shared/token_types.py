"""Training on text without types of tokens: the tiny models, and the observation of the probes of their patches."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared.quiet import quiet

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
IMAGE_TOKEN, IMAGE_TOKENS = 60, 4

ROUNDING = 1e-4

_ALL_ANSWER = """\
if token_type_ids is None and pixel_values is None and input_ids is not None:
    if self.training or labels is not None:
        token_type_ids = torch.ones_like(input_ids)
"""


def gemma3() -> Any:
    """Return a Gemma 3 that takes images, random weights, on the CPU."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config=TEXT | SLIDING,
        vision_config=VISION,
        mm_tokens_per_image=IMAGE_TOKENS,
        image_token_id=IMAGE_TOKEN,
    )
    return _seeded(Gemma3ForConditionalGeneration, config)


def gemma4() -> Any:
    """Return a Gemma 4 whose images are seen in both directions, as in the larger ones; without towers."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 0,
        "use_bidirectional_attention": "vision",
    }
    special = {"image_token_id": IMAGE_TOKEN, "video_token_id": 61, "audio_token_id": 62}
    config = Gemma4Config(text_config=TEXT | SLIDING | text, vision_config=None, audio_config=None, **special)
    return _seeded(Gemma4ForConditionalGeneration, config)


def paligemma() -> Any:
    """Return a PaliGemma, random weights, on the CPU."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        text_config=TEXT | {"model_type": "gemma"},
        vision_config=VISION | {"projection_dim": 16, "model_type": "siglip_vision_model"},
        projection_dim=16,
        image_token_index=IMAGE_TOKEN,
    )
    return _seeded(PaliGemmaForConditionalGeneration, config)


def observe(name: str, build: Callable[[], Any]) -> Observation:
    """Train a model on text without types of tokens.

    Args:
        name: Its class in transformers; a release that has none has no defect of it.
        build: Builds it.

    Returns:
        The defect is present if it refuses for want of them; the evidence has the error, or else the loss.
    """
    import torch
    import transformers

    if not hasattr(transformers, name):
        return Observation(False, {"absent": name})
    with quiet():
        model, tokens = build().train(), 3 + torch.arange(8)[None]
        try:
            loss = model(input_ids=tokens, labels=tokens).loss.item()
        except ValueError as error:
            return Observation("token_type_ids" in str(error), {"ValueError": str(error)})
    return Observation(False, {"loss": round(loss, 4)})


def answer_all(function: ast.FunctionDef) -> ast.FunctionDef:
    """Have text that is trained on, or has labels, all answer and no prompt, unless its types are given.

    Args:
        function: The syntax of ``PaliGemmaForConditionalGeneration.forward``.

    Returns:
        The same, with a statement in front of the others.

    Raises:
        MismatchError: It does not take what that reads.
    """
    needed = ("input_ids", "pixel_values", "token_type_ids", "labels")
    taken = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    if not set(needed) <= set(taken):
        raise MismatchError(f"the parameters {', '.join(needed)}", ", ".join(taken))
    first = int(ast.get_docstring(function) is not None)
    function.body[first:first] = ast.parse(_ALL_ANSWER).body
    return function


def observe_leak() -> Observation:
    """Change the last token of a text that a tiny PaliGemma is trained on, and look at the logits before it.

    Returns:
        The defect is present if these change, but do not where the text is padded; not if it is refused.
    """
    import torch

    changes = {}
    with quiet():
        model, tokens = paligemma().train(), 3 + torch.arange(8)[None]
        other = tokens.clone()
        other[0, -1] = 40
        for name, padding in (("alone", 0), ("padded", 2)):
            mask = (torch.arange(8)[None] >= padding).long()
            try:
                with torch.no_grad():
                    one, two = (model(input_ids=t, attention_mask=mask, labels=t).logits for t in (tokens, other))
            except ValueError as error:
                return Observation(False, {"ValueError": str(error)})
            changes[name] = round((one - two)[:, padding:-1].abs().max().item(), 4)
    return Observation(changes["padded"] <= ROUNDING < changes["alone"], changes)


def _seeded(kind: Any, config: Any) -> Any:
    import torch

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config)
