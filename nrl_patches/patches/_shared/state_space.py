"""Packed rows in layers that carry a state along the row: each sequence begins with an empty one.

A decoder layer is the innermost that is told of the sequences, and what is recomputed under checkpointing. It hands
them to its mixer in place of the mask, so that they are an argument like any other to whatever lies between. The mixer
is then run on each sequence alone: its code differs by release, and kernels and adapters are part of it.
"""

from __future__ import annotations

import ast
import inspect
import weakref
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from nrl_patches import Patch, mismatch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import kernel_rows
from nrl_patches.patches._shared.arguments import with_argument
from nrl_patches.patches._shared.packing import is_traced, sequence_indices

if TYPE_CHECKING:
    import torch

CACHES = ("cache", "cache_params", "past_key_values", "past_key_value")
"""The names that releases have for the cache."""

OF_ROWS = {"seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
"""Keyword arguments that describe the row, and are wrong of one of its sequences."""

REFUSAL = (
    "packed rows of a state-space model cannot be compiled: the state would run across their sequences. "
    "Run the model uncompiled, or pass one sequence per row"
)


Bounds: TypeAlias = "tuple[tuple[int, ...], ...]"


class Packed(NamedTuple):
    """What a decoder layer hands to its mixer as the mask of packed rows.

    Attributes:
        mask: The mask.
        bounds: For each row, where its sequences begin, and its length.
        for_kernels: Whether `seq_idx` was given, which is for kernels that keep the sequences apart themselves.
    """

    mask: torch.Tensor | None
    bounds: Bounds
    for_kernels: bool


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
        guard=lambda forward: mismatch(_within_hooks(forward), parameters="self hidden_states attention_mask"),
    )(run_apart)


def _within_hooks(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward that accelerate's hooks lie around; from 5.13.0 to 5.15.1 they do not tell its signature."""
    closure = inspect.getclosurevars(forward).nonlocals if inspect.isfunction(forward) else {}
    return cast("Callable[..., Any]", closure.get("forward_func", forward))


def hand_down(attribute: str, kinds: Collection[str], mask: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the build of a forward of a decoder layer that hands the sequences of packed rows to its mixer.

    Args:
        attribute: The attribute of the layer that holds the mixer, where it has one.
        kinds: The names of the classes of mixers that take :class:`Packed` for a mask.
        mask: The argument that the layer passes to it as the mask.
    """

    def build(forward: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(forward).parameters)[1:]
        modules = {forward.__module__, "transformers.integrations.accelerate"}

        def forward_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
            mixer = _inside(getattr(self, attribute, None))
            if _takes_packed(type(mixer), kinds, modules):
                call = dict(zip(names, args, strict=False)) | kwargs
                bounds = _bounds(self, mixer, call, call.get(mask))
                if bounds is not None:
                    told = Packed(_of_padding(call.get(mask)), bounds, call.get("seq_idx") is not None)
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


def _inside(mixer: Any) -> Any:
    """Return a mixer without what is wrapped around it."""
    for wrapper in ("_checkpoint_wrapped_module", "_orig_mod"):
        mixer = getattr(mixer, wrapper, mixer)
    return mixer


def _bounds(layer: Any, mixer: Any, call: Mapping[str, Any], mask: Any) -> Bounds | None:
    """Return where the sequences of packed rows begin, by all that a decoder layer was told; None if none is packed."""
    hidden = call["hidden_states"]
    told = (call.get("position_ids"), _of_padding(mask), call.get("seq_idx"), call.get("cu_seq_lens_q"))
    if isinstance(mask, Packed) or hidden.shape[1] == 1 or told[0] is told[2] is told[3] is None:
        return None
    if is_traced(hidden):
        _refuse_graph(hidden, *told)
        return None
    # Reading values makes the host wait for the device, and every layer is told the same.
    found, bounds = _last.recall(hidden, told)
    if found:
        return bounds
    configs = (getattr(part, "config", None) for part in (layer, mixer, getattr(layer, "self_attn", None)))
    attentions = {getattr(config, "_attn_implementation", None) or "" for config in configs}
    return _last.keep(hidden, told, _read(hidden, *told, flash="flash" in "".join(attentions)))


class _Last:
    """What was found last, by identity of what it was found in."""

    kept: tuple[Any, ...] = ()

    @staticmethod
    def _state(hidden: torch.Tensor, told: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if any(tensor is not None and tensor.is_inference() for tensor in told):
            return None  # They do not tell when they were changed.
        return hidden.shape[:2], *(None if tensor is None else tensor._version for tensor in told)

    def recall(self, hidden: torch.Tensor, told: tuple[Any, ...]) -> tuple[bool, Bounds | None]:
        """Return whether the same was asked last, and what the answer was."""
        if not self.kept:
            return False, None
        references, state, bounds = self.kept
        same = all((a and a()) is b for a, b in zip(references, told, strict=True))
        return (True, bounds) if same and state == self._state(hidden, told) else (False, None)

    def keep(self, hidden: torch.Tensor, told: tuple[Any, ...], bounds: Bounds | None) -> Bounds | None:
        """Keep an answer, and return it."""
        state = self._state(hidden, told)
        references = tuple(None if tensor is None else weakref.ref(tensor) for tensor in told)
        self.kept = () if state is None else (references, state, bounds)
        return bounds


_last = _Last()


def _changes(hidden: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """Return where a sequence begins by the index of each token's, but for the first of each row."""
    import torch

    batch, length = hidden.shape[:2]
    if index is None or index.dim() != 2 or index.shape[1] != length:  # noqa: PLR2004
        return torch.zeros(batch, length, dtype=torch.bool, device=hidden.device)
    return torch.nn.functional.pad(index.to(hidden.device).diff() != 0, (1, 0)).expand(batch, -1)


def _starts(
    hidden: torch.Tensor, positions: Any, mask: Any, seq_idx: Any, cu_seq_lens: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where a sequence begins by its positions, by `seq_idx` and by `cu_seq_lens_q`."""
    import torch

    if cu_seq_lens is not None:
        tokens = torch.arange(hidden.shape[:2].numel(), device=hidden.device).view(hidden.shape[:2])
        cu_seq_lens = torch.bucketize(tokens, cu_seq_lens.to(hidden.device), right=True)
    real = None if mask is None else mask != 0
    found = None if positions is None else sequence_indices(hidden, positions, real)
    return _changes(hidden, found), _changes(hidden, seq_idx), _changes(hidden, cu_seq_lens)


def _read(hidden: Any, positions: Any, mask: Any, *by_keyword: Any, flash: bool) -> Bounds | None:
    if hidden.is_meta:
        return None
    by_positions, by_index, by_lengths = _starts(hidden, positions, mask, *by_keyword)
    starts = by_positions | by_index | by_lengths
    if not bool(starts.any()):
        return None
    real = None if mask is None else mask != 0
    if real is not None:
        starts = starts & real & (real.cumsum(-1) > 1)
    if bool((starts & ~(by_positions | by_lengths if flash else by_positions)).any()):
        raise ValueError(
            "packed sequences that only cu_seq_lens_q or seq_idx tell of are not separated by the attention of this "
            "model: pass position_ids that restart with each of them too"
        )
    if real is not None:
        # What is padded on the left is no part of the first sequence: some releases do not mask a single row.
        starts = starts | (real & (real.cumsum(-1) == 1))
    rows = starts[:, 1:].tolist()
    return tuple((0, *(i for i, begins in enumerate(row, 1) if begins), hidden.shape[1]) for row in rows)


def _refuse_graph(hidden: torch.Tensor, *told: Any) -> None:
    """Put a check into a graph that no row is packed, which is not known while it is made."""
    import torch

    # What is exported or recorded runs elsewhere, where nothing is packed.
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        by_positions, by_index, by_lengths = _starts(hidden, *told)
        torch._assert_async(~(by_positions | by_index | by_lengths).any(), REFUSAL)


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


def run_apart(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a mixer that runs each sequence of packed rows alone.

    Args:
        forward: Upstream's.
    """
    upstream = _within_hooks(forward)
    names = list(inspect.signature(upstream).parameters)[1:]
    at = names.index("attention_mask")

    def forward_each(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[at] if len(args) > at else None
        if not isinstance(mask, Packed):
            return forward(self, *args, **kwargs)
        call = dict(zip(names, args, strict=False)) | kwargs
        if mask.for_kernels and _takes_row(upstream, self, call):
            call = {key: value for key, value in call.items() if key not in OF_ROWS}
            call |= {"attention_mask": mask.mask, "seq_idx": kernel_rows.seq_idx(mask.bounds, call["hidden_states"])}
            return forward(self, **call)
        return _each(forward, self, call, mask)

    return forward_each


def _takes_row(upstream: Callable[..., Any], mixer: Any, call: Mapping[str, Any]) -> bool:
    """Whether the kernels of a mixer keep sequences apart; a cache would go on with the last one of each row."""
    cached = any(call.get(name) is not None for name in CACHES)
    return not cached and kernel_rows.take_seq_idx(mixer, upstream, call["hidden_states"])


def _each(forward: Callable[..., Any], mixer: Any, call: dict[str, Any], packed: Packed) -> torch.Tensor:
    import torch

    name = next((name for name in CACHES if name in call), None)
    cache = call[name] if name else None
    call["attention_mask"] = packed.mask
    # What is packed on top of earlier tokens stays as it is.
    if cache is not None and _is_filled(cache, mixer, call):
        return forward(mixer, **call)
    hidden, order, mask = call.pop("hidden_states"), call.pop("cache_position", None), call.pop("attention_mask")
    call = {key: value for key, value in call.items() if key not in OF_ROWS}

    def run(states: torch.Tensor, seen: Any, **how: Any) -> torch.Tensor:
        if order is not None:
            how["cache_position"] = order[: states.shape[1]]
        return forward(mixer, **call | {"hidden_states": states, "attention_mask": seen} | how)

    alone = {name: None} if name else {}
    rows = []
    for row, bounds in enumerate(packed.bounds):
        here = slice(row, row + 1)
        parts = [
            run(hidden[here, a:b], None if mask is None else mask[here, a:b], **alone) for a, b in pairwise(bounds)
        ]
        rows.append(torch.cat(parts, 1))
    if cache is not None:
        # A cache goes on with the last sequence of each row.
        lengths = [bounds[-1] - bounds[-2] for bounds in packed.bounds]
        longest = max(lengths)
        there = hidden.new_tensor(lengths)[:, None] > torch.arange(longest - 1, -1, -1, device=hidden.device)
        if mask is not None:
            there = there & (mask[:, -longest:] != 0)
        run(hidden[:, -longest:], None if bool(there.all()) else there.to(torch.long))
    return torch.cat(rows)


def _is_filled(cache: Any, mixer: Any, call: Mapping[str, Any]) -> bool:
    """Whether a cache has states of earlier tokens for a mixer."""
    filled = getattr(cache, "has_previous_state", None)
    if callable(filled):
        filled = filled(mixer.layer_idx)
    if filled is None:
        order = call.get("cache_position")
        filled = order is not None and bool(order[0] > 0)
    return bool(filled)
