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
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from nrl_patches import Patch, mismatch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import kernel_rows
from nrl_patches.patches._shared.arguments import with_argument
from nrl_patches.patches._shared.last_rows import LastRows
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
Place: TypeAlias = "tuple[int, int, int]"
"""Of a sequence: its row, where it begins there, and where it ends."""


class Packed(NamedTuple):
    """What a decoder layer hands to its mixer as the mask of packed rows.

    Attributes:
        mask: The mask.
        bounds: For each row, where its sequences begin, and its length.
    """

    mask: torch.Tensor | None
    bounds: Bounds


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
    configs = (getattr(part, "config", None) for part in (layer, mixer, getattr(layer, "self_attn", None)))
    attentions = {getattr(config, "_attn_implementation", None) or "" for config in configs}
    return _last.read(hidden, told, functools.partial(_read, hidden, *told, flash="flash" in "".join(attentions)))


_last: LastRows[Bounds | None] = LastRows()


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
    """Build a forward of a mixer that keeps the sequences of packed rows apart.

    Args:
        forward: Upstream's.
    """
    names = list(inspect.signature(_within_hooks(forward)).parameters)[1:]
    at = names.index("attention_mask")

    def forward_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[at] if len(args) > at else None
        if not isinstance(mask, Packed):
            return forward(self, *args, **kwargs)
        call = dict(zip(names, args, strict=False)) | kwargs | {"attention_mask": mask.mask}
        cache = next((call[name] for name in CACHES if call.get(name) is not None), None)
        # What is packed on top of earlier tokens stays as it is.
        if cache is not None and _is_filled(cache, self, call):
            return forward(self, **call)
        return _Run(forward, names, self, call).apart(mask.bounds, is_cached=cache is not None)

    return forward_apart


def _batches(bounds: Bounds) -> Iterator[list[Place]]:
    """Yield sequences of about the same length, so that no more than a fifth of each is padded."""
    places = [(row, a, b) for row, row_bounds in enumerate(bounds) for a, b in pairwise(row_bounds)]
    places.sort(key=lambda place: place[1] - place[2])
    while places:
        longest = places[0][2] - places[0][1]
        count = sum(5 * (b - a) >= 4 * longest for _, a, b in places)
        yield places[:count]
        places = places[count:]


class _Run:
    """A call of a mixer that is done in parts.

    Args:
        forward: What runs it.
        names: Those of the parameters of its forward.
        mixer: The mixer.
        call: Its arguments by name.
    """

    def __init__(self, forward: Callable[..., Any], names: Collection[str], mixer: Any, call: dict[str, Any]) -> None:
        self.forward, self.names, self.mixer = forward, names, mixer
        self.hidden, self.order, self.mask = (
            call.pop(name, None) for name in ("hidden_states", "cache_position", "attention_mask")
        )
        self.call = {key: value for key, value in call.items() if key not in OF_ROWS}
        self.uncached = {name: None for name in CACHES if name in call}

    def __call__(self, mixer: Any, states: torch.Tensor, mask: torch.Tensor | None, **how: Any) -> Any:
        if self.order is not None:
            how["cache_position"] = self.order[: states.shape[1]]
        return self.forward(mixer, **self.call | {"hidden_states": states, "attention_mask": mask} | how)

    def apart(self, bounds: Bounds, *, is_cached: bool) -> torch.Tensor:
        """Return what the mixer makes of packed rows; a cache goes on with the last sequence of each."""

        def whole(mixer: Any, **how: Any) -> Any:
            return self(mixer, self.hidden, self.mask, **self.uncached, **how)

        found = kernel_rows.by_kernels(whole, self.names, self.mixer, self.hidden, bounds)
        found = self._alone(bounds) if found is None else found
        if is_cached:
            self._cache(bounds)
        return found

    def _alone(self, bounds: Bounds) -> torch.Tensor:
        import torch

        pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        found: dict[Place, torch.Tensor] = {}
        for batch in _batches(bounds):
            hidden = pad([self.hidden[row, a:b] for row, a, b in batch])
            mask = None if self.mask is None else pad([self.mask[row, a:b] for row, a, b in batch])
            # What is padded comes last, and none before it sees it.
            found |= zip(batch, self(self.mixer, hidden, mask, **self.uncached), strict=True)
        rows = range(len(bounds))
        return torch.stack([torch.cat([found[row, a, b][: b - a] for a, b in pairwise(bounds[row])]) for row in rows])

    def _cache(self, bounds: Bounds) -> None:
        import torch

        lengths = [places[-1] - places[-2] for places in bounds]
        longest = max(lengths)
        order = torch.arange(longest - 1, -1, -1, device=self.hidden.device)
        there = self.hidden.new_tensor(lengths)[:, None] > order
        if self.mask is not None:
            there = there & (self.mask[:, -longest:] != 0)
        self(self.mixer, self.hidden[:, -longest:], None if bool(there.all()) else there.to(torch.long))


def _is_filled(cache: Any, mixer: Any, call: Mapping[str, Any]) -> bool:
    """Whether a cache has states of earlier tokens for a mixer."""
    filled = getattr(cache, "has_previous_state", None)
    if callable(filled):
        filled = filled(mixer.layer_idx)
    if filled is None:
        order = call.get("cache_position")
        filled = order is not None and bool(order[0] > 0)
    return bool(filled)
