"""Packed rows in models of state-space layers alone, from the arguments of the model down to its mixers.

Their layers are told of no positions, and the causal model drops those that it is given. Here it hands the sequences to
the model inside of it, in place of the mask; and that hands them to its mixers, in place of what it has made of the
mask by then. So they are an argument to whatever lies between, and are there again when a layer is recomputed.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nrl_patches import Observation
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import filled_cache, mixers_apart, packing, sequences_told
from nrl_patches.patches._shared.mixers_apart import Packed
from nrl_patches.patches._shared.quiet import quiet
from nrl_patches.patches._shared.sequences_told import Bounds
from nrl_patches.patches._shared.wrapped import inside

if TYPE_CHECKING:
    import torch

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Mamba": {},
    "FalconMamba": {},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 16},
}
"""By the prefix of their classes, what tiny models need beside what ``filled_cache`` gives them."""

MIXERS = frozenset(f"{family}Mixer" for family in FAMILIES)

_HOOKS = "transformers.integrations.accelerate"
"""The module of the forwards that accelerate's hooks lie around."""


def hand_in(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of a causal model so that it hands the sequences of packed rows to the model inside of it.

    Args:
        function: Upstream's, which drops what tells of them. It stays upstream's to what reads its source.

    Returns:
        The same, which looks for them first.

    Raises:
        MismatchError: It takes no further keyword arguments.
    """
    if function.args.kwarg is None:
        raise MismatchError("further keyword arguments", "none")
    _put_first(function, f"attention_mask = _models.told(attention_mask, _given, {function.args.kwarg.arg})")
    return function


def hand_over(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of a model without a head so that its layers get the sequences in place of the mask.

    Args:
        function: Upstream's.

    Returns:
        The same, which looks at its mask first, and at it again before its layers.

    Raises:
        MismatchError: It does not go through its layers in one place.
    """
    loops = [n for n in function.body if isinstance(n, ast.For) and ast.unparse(n.iter) == "self.layers"]
    if len(loops) != 1:
        raise MismatchError("one loop over self.layers", f"{len(loops)} loops")
    at, keywords = function.body.index(loops[0]), "{}" if function.args.kwarg is None else function.args.kwarg.arg
    function.body[at:at] = ast.parse("attention_mask = _models.packed(self.layers, attention_mask, _told)").body
    _put_first(function, f"attention_mask, _told = _models.take(attention_mask, _given, {keywords})")
    return function


def run_apart(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a mixer that keeps the sequences of packed rows apart.

    Args:
        forward: Upstream's.
    """
    names = list(inspect.signature(mixers_apart.within_hooks(forward)).parameters)[1:]
    if "cache_position" not in names:
        return mixers_apart.run_apart(forward)

    @functools.wraps(forward)
    def forward_in_order(self: Any, *args: Any, order: Any = None, **kwargs: Any) -> Any:
        if order is not None and kwargs.get("cache_params") is not None:
            kwargs["cache_position"] = order
        return forward(self, *args, **kwargs)

    apart = mixers_apart.run_apart(forward_in_order)

    def forward_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = dict(zip(names, args, strict=False)) | kwargs
        if isinstance(call.get("attention_mask"), Packed):
            # By its length, that of the convolution, Mamba and FalconMamba tell that a cache is empty, up to 5.3.0.
            return apart(self, **call, order=call.get("cache_position"))
        return apart(self, *args, **kwargs)

    return forward_apart


def take(mask: Any, given: torch.Tensor | None, keywords: Mapping[str, Any]) -> tuple[Any, Packed | None]:
    """Look for packed rows.

    Args:
        mask: False for padding, ``(batch, length)``; None if there is none; or what this returned of such.
        given: What may be packed, ``(batch, length)`` or ``(batch, length, width)``.
        keywords: The keyword arguments of the model.

    Returns:
        The mask, and the sequences of packed rows; None if there are none.
    """
    if isinstance(mask, Packed):
        return mask.mask, mask
    positions, index, lengths = (keywords.get(name) for name in ("position_ids", "seq_idx", "cu_seq_lens_q"))
    if given is None or given.is_meta or given.shape[1] == 1 or positions is index is lengths is None:
        return mask, None
    # On top of earlier tokens it may be of these too.
    padding = mask if getattr(mask, "shape", None) == given.shape[:2] else None
    if packing.is_traced(given):
        sequences_told.refuse_graph(given, positions, padding, index, lengths)
        return mask, None
    found = []
    if positions is not None:
        found.append(sequences_told.bounds(given, positions, padding, None, None, flash=False))
    ends = _ends(given, index, lengths)
    if ends is not None:  # There is no attention that would have to be told of positions.
        found.append(sequences_told.bounds(given, None, padding, None, ends, flash=True))
    rows = [bounds for bounds in found if bounds is not None]
    return mask, Packed(mask, _together(*rows)) if rows else None


def told(mask: Any, given: torch.Tensor | None, keywords: Mapping[str, Any]) -> Any:
    """Return what a causal model is to hand to the model inside of it as the mask: the sequences, if rows are packed.

    Args:
        mask: As for :func:`take`.
        given: As for :func:`take`.
        keywords: The keyword arguments of the causal model.
    """
    mask, sequences = take(mask, given, keywords)
    return mask if sequences is None else sequences


def packed(layers: Iterable[Any], mask: Any, sequences: Packed | None) -> Any:
    """Return what layers are to pass to their mixers as the mask.

    Args:
        layers: The layers.
        mask: What the model has made of its mask.
        sequences: Those of packed rows, None if there are none.

    Returns:
        The mask, too, if there is a mixer whose forward is another party's, which would not know what to do with it.
    """
    if sequences is None:
        return mask
    return (
        Packed(mask, sequences.bounds) if all(_takes(type(inside(inside(layer).mixer))) for layer in layers) else mask
    )


def observe() -> Observation:
    """Compare the logits of packed sequences with those of each alone.

    Returns:
        The defect is present if those of any family differ.
    """
    import transformers

    with quiet():
        # Before 4.45.0 the mixers of two are given no mask, in place of which they are told of sequences.
        there = FAMILIES if "attention_mask" in inspect.signature(transformers.MambaModel.forward).parameters else ()
        # No sequence is of one token, which Mamba-2 of 4.47.1 and older cannot read without a cache.
        evidence = {family: packing.leak(tiny_model(family), (5, 2, 6), use_cache=False) for family in there}
    return Observation(max(evidence.values(), default=0.0) > packing.ROUNDING, evidence)


def tiny_model(family: str) -> Any:
    """Return a causal language model with random weights, on the CPU.

    Args:
        family: A key of :data:`FAMILIES`.
    """
    return filled_cache.tiny_model(family, **FAMILIES[family])


def _takes(kind: Any) -> bool:
    """Whether the forward of a class of mixers is one of ours, or that of a class derived from one that has it."""
    *_, has_it = (base for base in kind.__mro__ if getattr(base, "forward", None) is kind.forward)
    own = next((base for base in kind.__mro__ if base.__name__ in MIXERS), None)
    return own is not None and (has_it is not own or kind.forward.__module__ in {own.__module__, _HOOKS})


def _put_first(function: ast.FunctionDef, statement: str) -> None:
    first = int(ast.get_docstring(function) is not None)
    function.body[first:first] = ast.parse(
        f"from {__name__.rpartition('.')[0]} import mamba_models as _models\n"
        f"_given = input_ids if inputs_embeds is None else inputs_embeds\n{statement}"
    ).body


def _ends(given: torch.Tensor, index: torch.Tensor | None, lengths: torch.Tensor | None) -> torch.Tensor | None:
    """Return where sequences end, over all rows, by `seq_idx` and by `cu_seq_lens_q`, as the latter has it."""
    import torch

    if index is None or index.dim() != 2 or index.shape[1] != given.shape[1]:  # noqa: PLR2004
        return lengths
    index = index.to(given.device).expand(given.shape[0], -1)
    starts = torch.nn.functional.pad(index.diff() != 0, (1, 0), value=True).flatten().nonzero().flatten()
    ends = torch.cat([starts, starts.new_tensor([index.numel()])])
    return ends if lengths is None else torch.cat([ends, lengths.to(ends)]).unique()


def _together(*found: Bounds) -> Bounds:
    return tuple(tuple(sorted(set().union(*rows))) for rows in zip(*found, strict=True))
