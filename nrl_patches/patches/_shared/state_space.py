"""Packed rows in layers that carry a state along the row: each sequence begins with an empty one.

A decoder layer is the innermost that is told of the sequences, and what is recomputed under checkpointing. It hands
them to its mixer in place of the mask, so that they are an argument like any other to whatever lies between. The mixer
is then run on the sequences as a batch, by its own code, which differs by release and has adapters in it; or on whole
rows, by kernels that are told of the sequences.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from nrl_patches import Patch, mismatch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import sequences_told
from nrl_patches.patches._shared.arguments import with_argument
from nrl_patches.patches._shared.last_rows import LastRows
from nrl_patches.patches._shared.mixers_apart import Packed, run_apart, within_hooks
from nrl_patches.patches._shared.packing import is_traced
from nrl_patches.patches._shared.sequences_told import Bounds
from nrl_patches.patches._shared.wrapped import inside

if TYPE_CHECKING:
    import torch

_HOOKS = "transformers.integrations.accelerate"
"""The module of the forwards that accelerate's hooks lie around."""


def separate(patch: Patch, family: str, mixer: str, layers: Mapping[str, str], mask: str = "attention_mask") -> None:
    """Declare the fixes of a patch that separate packed rows in the models of a family.

    Args:
        patch: The patch.
        family: The name of the family's package below ``transformers.models``.
        mixer: The name of the class of its mixer.
        layers: By the names of the classes of its decoder layers, the attribute that holds the mixer, or the layer that
            does.
        mask: The argument of those that they pass to it as the mask.
    """
    module = f"transformers.models.{family}.modeling_{family}"
    for layer, attribute in layers.items():
        patch.fix(
            f"{module}:{layer}.forward",
            guard=lambda forward: mismatch(forward, parameters=f"self hidden_states {mask}"),
        )(hand_down(attribute, {mixer, *layers}, mask))
    patch.fix(
        f"{module}:{mixer}.forward",
        guard=lambda forward: mismatch(within_hooks(forward), parameters="self hidden_states attention_mask"),
    )(run_apart)


def hand_down(attribute: str, kinds: Collection[str], mask: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the build of a forward of a decoder layer that hands the sequences of packed rows to its mixer.

    Args:
        attribute: The attribute of the layer that holds the mixer, where it has one.
        kinds: The names of the classes of mixers that take :class:`Packed` for a mask.
        mask: The argument that the layer passes to it as the mask.
    """

    def build(forward: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(forward).parameters)[1:]
        modules = {forward.__module__, _HOOKS}

        def forward_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
            mixer = inside(getattr(self, attribute, None))
            if _takes_packed(type(mixer), kinds, modules):
                call = dict(zip(names, args, strict=False)) | kwargs
                bounds = _bounds(self, mixer, call, call.get(mask))
                if bounds is not None:
                    told = Packed(_of_padding(call.get(mask)), bounds)
                    args, kwargs = with_argument(names, args, kwargs, mask, told)
            return forward(self, *args, **kwargs)

        return forward_apart

    return build


def _takes_packed(kind: type, kinds: Collection[str], modules: Collection[str]) -> bool:
    """Whether the forward of a class is one of ours, or that of a class derived from one that has it."""
    if not any(base.__name__ in kinds for base in kind.__mro__):
        return False
    # By attribute: dynamo does not read the dictionary of a class once any other has changed in the graph.
    *_, has_it = (base for base in kind.__mro__ if getattr(base, "forward", None) is kind.forward)  # type: ignore[attr-defined]
    # Another party's forward, in the place of ours, would not know what to do with it.
    return has_it.__name__ not in kinds or kind.forward.__module__ in modules  # type: ignore[attr-defined]


def _of_padding(mask: Any) -> Any:
    """Return a mask if it is one of padding, ``(batch, length)``; LFM2 up to 4.57.6 gets that of its attention."""
    return mask if getattr(mask, "ndim", None) == 2 else None  # noqa: PLR2004


def _bounds(layer: Any, mixer: Any, call: Mapping[str, Any], mask: Any) -> Bounds | None:
    """Return where the sequences of packed rows begin, by all that a decoder layer was told; None if none is packed."""
    hidden, padding = call["hidden_states"], _of_padding(mask)
    # On top of earlier tokens it may be of these too.
    padding = None if padding is None or padding.shape[1] != hidden.shape[1] else padding
    told = (call.get("position_ids"), padding, call.get("seq_idx"), call.get("cu_seq_lens_q"))
    if isinstance(mask, Packed) or hidden.shape[1] == 1 or told[0] is told[2] is told[3] is None:
        return None
    if is_traced(hidden):
        sequences_told.refuse_graph(hidden, *told)
        return None
    configs = (getattr(part, "config", None) for part in (layer, mixer, getattr(layer, "self_attn", None)))
    attentions = {getattr(config, "_attn_implementation", None) or "" for config in configs}
    return _last.read(
        hidden, told, functools.partial(sequences_told.bounds, hidden, *told, flash="flash" in "".join(attentions))
    )


_last: LastRows[Bounds | None] = LastRows()


def tell_layers(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of a model so that its decoder layers are told of the positions.

    Args:
        function: Upstream's.

    Returns:
        The same with one more argument for the layers.

    Raises:
        MismatchError: It does not call them in one place, without positions.
    """
    nodes = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    calls = [call for call in nodes if ast.unparse(call.func) == "decoder_layer"]
    if len(calls) != 1 or any(keyword.arg == "position_ids" for keyword in calls[0].keywords):
        raise MismatchError("one call of decoder_layer without position_ids", "; ".join(map(ast.unparse, calls)))
    calls[0].keywords.insert(0, ast.keyword("position_ids", ast.Name("position_ids", ast.Load())))
    return function


def hand_over_layers(mixer: str) -> Callable[[ast.FunctionDef], ast.FunctionDef]:
    """Return the rewrite of a model whose layers cannot be told of positions, by which it hands mixers the sequences.

    Args:
        mixer: The name of the class of its mixers, one of which each layer has.

    Returns:
        A function of upstream's forward. It returns the same with another mask, which layers pass on to mixers, and
        raises :class:`MismatchError` if that does not go through its layers in one place.
    """

    def edit(function: ast.FunctionDef) -> ast.FunctionDef:
        loops = [n for n in function.body if isinstance(n, ast.For) and "self.layers" in ast.unparse(n.iter)]
        if len(loops) != 1:
            raise MismatchError("one loop over self.layers", f"{len(loops)} loops")
        at = function.body.index(loops[0])
        function.body[at:at] = ast.parse(
            f"from {__name__.rpartition('.')[0]} import state_space as _state_space\n"
            "attention_mask = _state_space.packed_mask("
            f"self, attention_mask, hidden_states, position_ids, {mixer!r}, __name__)"
        ).body
        return function

    return edit


def packed_mask(model: Any, mask: Any, hidden: torch.Tensor, positions: torch.Tensor, mixer: str, module: str) -> Any:
    """Return what the layers of a model are to pass to their mixers as the mask.

    Args:
        model: The model.
        mask: False for padding, ``(batch, length)``; None if there is none.
        hidden: The embeddings, ``(batch, length, width)``.
        positions: The positions, ``(batch, length)``.
        mixer: The name of the class of its mixers.
        module: That of the module that has it.

    Returns:
        :class:`Packed` if there are packed rows and the mixers take it, else the mask.
    """
    bounds = _bounds(model, None, {"hidden_states": hidden, "position_ids": positions}, mask)
    if bounds is None:
        return mask
    takers = [part for part in model.layers.modules() if _takes_packed(type(part), {mixer}, {module, _HOOKS})]
    return Packed(_of_padding(mask), bounds) if len(takers) == len(model.layers) else mask
