"""Packed rows in the masks that hybrid models make by themselves, before transformers 5.2.0."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared.packing import sequence_indices

if TYPE_CHECKING:
    import torch


def keep_apart(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of a model so that the sequences of packed rows are apart in the mask of its attention.

    Args:
        function: Upstream's.

    Returns:
        The same with a statement after the one that makes the mask; unchanged if the library makes it.

    Raises:
        MismatchError: It is not made of a mask of padding and of embeddings in one place.
    """
    if "create_causal_mask" in {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}:
        return function
    made = [node for node in ast.walk(function) if _makes_mask(node)]
    if len(made) != 1 or made[0] not in function.body:
        raise MismatchError("`causal_mask = self._update_causal_mask(...)` once", f"it {len(made)} times")
    mask, inputs = (ast.unparse(argument) for argument in made[0].value.args[:2])  # type: ignore[attr-defined]
    after = function.body.index(made[0]) + 1
    function.body[after:after] = ast.parse(
        f"causal_mask = _own_masks.apart(self, causal_mask, {mask}, {inputs}, _given_positions, past_key_values)"
    ).body
    at = 1 if ast.get_docstring(function) else 0
    function.body[at:at] = ast.parse(
        f"from {__name__.rpartition('.')[0]} import own_masks as _own_masks\n_given_positions = position_ids"
    ).body
    return function


def _makes_mask(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return False
    return ast.unparse(node.value.func) == "self._update_causal_mask" and ast.unparse(node.targets[0]) == "causal_mask"


def apart(
    model: Any,
    causal: torch.Tensor | None,
    mask: torch.Tensor | None,
    inputs: torch.Tensor,
    positions: torch.Tensor | None,
    cache: Any,
) -> torch.Tensor | None:
    """Return the mask of a model's attention, in which the sequences of packed rows do not see each other.

    Args:
        model: The model.
        causal: The mask that it made, which is added to scores, ``(batch, 1, length, keys)``; None if its attention is
            causal by itself.
        mask: False for padding, ``(batch, length)``; others are not read.
        inputs: The embeddings, ``(batch, length, width)``.
        positions: The positions that it was given, ``(batch, length)``.
        cache: Its cache.
    """
    import torch

    length = inputs.shape[1]
    if positions is None or length == 1 or "flash" in str(model.config._attn_implementation) or _is_filled(cache):
        return causal
    if mask is not None and mask.dim() != 2:  # noqa: PLR2004
        return causal
    found = sequence_indices(inputs, positions, None if mask is None else mask != 0)
    if found is None:
        return causal
    lowest = torch.finfo(inputs.dtype).min
    if causal is None:
        causal = torch.full((length, length), lowest, dtype=inputs.dtype, device=inputs.device).triu(1)[None, None]
    others = found[:, None, :, None] != found[:, None, None, :]
    # Some have a key more than there are, which no token sees.
    others = torch.nn.functional.pad(others, (0, causal.shape[-1] - length))
    return causal.masked_fill(others, lowest)


def _is_filled(cache: Any) -> bool:
    """Whether there are earlier tokens; a hybrid cache tells of no length before it has one, or of a wrong one."""
    if cache is None:
        return False
    filled = getattr(cache, "has_previous_state", None)
    return bool(cache.get_seq_length() > 0 if filled is None else filled)


def without_mixers(model: Any) -> Any:
    """Return a model whose state-space layers add nothing.

    Args:
        model: One of :func:`~nrl_patches.patches._shared.state_space_models.tiny_model`.
    """
    for name, weight in model.named_parameters():
        if ".mamba." in name and ".out_proj." in name:
            weight.requires_grad_(False).zero_()
    return model
