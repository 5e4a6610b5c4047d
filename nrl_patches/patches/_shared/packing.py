"""Packed rows: telling their sequences apart by `position_ids`, and measuring whether a model does."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation
from nrl_patches.patches._shared.quiet import quiet

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-4

_CACHES = ("DynamicCache", "HybridConvCache")


def look_under_mask(preprocess: Callable[..., Any]) -> Callable[..., torch.Tensor | None]:
    """Build a function that looks for packed sequences where transformers does not: under a mask, with an empty cache.

    Args:
        preprocess: transformers' ``_preprocess_mask_arguments``.

    Returns:
        A function of what that returned, of its positional arguments and of its keyword arguments. It returns the
        index in its row of each token's sequence, ``(batch, length)``; None where there is nothing to add.
    """
    from transformers import cache_utils, masking_utils

    names = list(inspect.signature(preprocess).parameters)
    name_of_cache = "cache" if "cache" in names else "past_key_values"

    def look(prepared: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        early_exit, mask, found, *sizes = prepared
        call = dict(zip(names, args, strict=False)) | kwargs
        cache, position_ids = call[name_of_cache], call["position_ids"]
        if early_exit or found is not None or position_ids is None or (mask is None and cache is None):
            return None
        # The keyword was renamed in 5.2.0, and the old one was accepted up to 5.8.1.
        inputs = call["input_embeds"] if "input_embeds" in call else call["inputs_embeds"]
        # Before 5.4.0 the length and the offset of the queries are not among the sizes.
        kv_length, kv_offset = sizes if len(sizes) == 2 else (sizes[1], sizes[3])  # noqa: PLR2004
        length = inputs.shape[1]
        # Before 5.5 hybrid models have caches of their own that are none of transformers', and grow like this one.
        dynamic = isinstance(cache, cache_utils.DynamicCache) or type(cache).__name__.endswith(_CACHES)
        if length == 1 or not (cache is None or dynamic):
            return None
        if kv_length != length or kv_offset != 0:
            return None
        interface = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[call["config"]._attn_implementation]
        if interface is masking_utils.flash_attention_mask:
            return None
        return sequence_indices(inputs, position_ids, mask)

    return look


def sequence_indices(
    inputs: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Number the sequences of packed rows.

    A sequence starts where a token that is not padding has the lowest position of its row once more. Whatever the
    positions of padding are, it starts none, and neither does a position that leaps ahead.

    Args:
        inputs: The embeddings, ``(batch, length, width)``.
        position_ids: The positions, ``(batch, length)`` or ``(1, length)``; others are not read.
        mask: False for padding, ``(batch, length)`` or longer; None if there is none.

    Returns:
        The index in its row of each token's sequence; None if no row is packed, which cannot be known of values that
        are being traced.
    """
    import torch

    batch, length = inputs.shape[:2]
    two_dimensional = all(len(tensor.shape) == 2 for tensor in (position_ids, mask) if tensor is not None)  # noqa: PLR2004
    # Tensors of the device `meta` have no values to be told by.
    if not two_dimensional or position_ids.is_meta or position_ids.shape[1] != length:
        return None
    if mask is not None and mask.shape[1] < length:
        return None
    traced = is_traced(position_ids)
    # Spares most batches the rest.
    if not traced and not (position_ids.diff() <= 0).any():
        return None
    position_ids = position_ids.to(inputs.device).expand(batch, -1)
    real = torch.ones_like(position_ids, dtype=torch.bool) if mask is None else mask[:, :length]
    lowest = torch.where(real, position_ids, position_ids.amax(-1, keepdim=True)).amin(-1, keepdim=True)
    # A model that makes no use of positions may be given the same one throughout.
    rises = (real & (position_ids != lowest)).any(-1, keepdim=True)
    starts = real & (position_ids == lowest) & (real.cumsum(-1) > 1) & rises
    return starts.cumsum(-1) if traced or bool(starts.any()) else None


def positions_in(found: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the position of each token in its sequence; in the first of a row, that in the row.

    Rows of a single sequence so keep the order and the distances that they have without any remapping, whatever their
    position ids are. Later sequences are moved by the padding on the left, which chunked attention subtracts.

    Args:
        found: The index of each token's sequence.
        mask: As for :func:`sequence_indices`.
    """
    import torch

    lengths = torch.zeros_like(found).scatter_add(1, found, torch.ones_like(found))
    begins = (lengths.cumsum(-1) - lengths).gather(1, found)
    positions = torch.arange(found.shape[1], device=found.device) - begins
    if mask is None:
        return positions
    padding = (mask[:, : found.shape[1]].cumsum(-1) == 0).sum(-1, keepdim=True)
    return positions + padding * (found > 0)


class _Held:
    """Where positions lie between two calls."""

    positions: torch.Tensor | None = None


# Dynamo would compile for each thread anew if it were per thread there too; it compiles in one at a time.
_COMPILED, _EAGER = _Held(), type("_HeldByThread", (_Held, threading.local), {})()


def hand_over(positions: torch.Tensor | None) -> None:
    """Leave positions for the next :func:`take_over`, which transformers calls in the same function.

    Args:
        positions: Those of :func:`positions_in`, None for upstream's own.
    """
    import torch

    (_COMPILED if torch.compiler.is_compiling() else _EAGER).positions = positions


def take_over() -> torch.Tensor | None:
    """Return what was handed over, once."""
    import torch

    held: _Held = _COMPILED if torch.compiler.is_compiling() else _EAGER
    positions, held.positions = held.positions, None
    return positions


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether a graph is being made, in which values cannot be read.

    Args:
        tensor: One of its inputs.
    """
    import torch

    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor) or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def tiny_model(config: str = "Mistral", attention: str = "sdpa", of: str = "", **changes: Any) -> Any:
    """Return a causal language model of two layers, random weights, on the CPU.

    Args:
        config: The prefix of its configuration's class in transformers.
        attention: The implementation of its attention.
        of: The prefix of its own class, if that is another.
        changes: Fields of the configuration that differ.
    """
    import torch
    import transformers

    fields = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": None,
        "initializer_range": 0.5,
        "pad_token_id": 0,
    }
    settings = getattr(transformers, f"{config}Config")(**(fields | changes), attn_implementation=attention)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{of or config}ForCausalLM")(settings).eval()


def observe(*, remapping: bool) -> Observation:
    """Compare the logits of packed sequences, with a mask of ones and with a cache, with those of each alone.

    Args:
        remapping: Whether the defect is that of releases whose masks take the order of packed tokens from positions.

    Returns:
        The defect is present if the sequences are told apart with neither, and not with one of them.
    """
    from transformers import masking_utils

    if hasattr(masking_utils, "remap_positions_for_packed_sequence") != remapping:
        return Observation(present=False, evidence={"remapping": not remapping})
    with quiet():
        model = tiny_model()
        plain, ones = leak(model, use_cache=False), leak(model, use_cache=False, ones=True)
        cache = leak(model, use_cache=True)
    # Releases before 4.53.1 tell no sequences apart by their positions, and never said that they would.
    present = plain < ROUNDING < max(ones, cache)
    return Observation(present, {"neither": plain, "mask_of_ones": ones, "cache": cache})


def leak(model: Any, lengths: tuple[int, ...] = (5, 1, 6), *, ones: bool = False, **how: Any) -> float:
    """Return how far the logits of packed sequences are from those of each alone.

    Args:
        model: A causal language model.
        lengths: How long the sequences are.
        ones: Whether the packed forward is given a mask of ones.
        how: Its further arguments.
    """
    import torch

    tokens = 3 + torch.arange(sum(lengths))[None] % (model.config.vocab_size - 3)
    if ones:
        how["attention_mask"] = torch.ones_like(tokens)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        packed = model(input_ids=tokens, position_ids=positions, **how).logits
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in tokens.split(lengths, 1)], 1)
    return float((packed - alone).abs().max())
