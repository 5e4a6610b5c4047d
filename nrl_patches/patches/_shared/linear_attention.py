"""Packed rows in layers of linear attention: the state and the convolution start anew with each sequence.

The decoder layer is the last that is told of the sequences, and what is recomputed under checkpointing. It hands them
to its mixer together with the mask, as the mask, so that they are an argument like any other to whatever lies between.
The mixer's code stays upstream's, but for what it calls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nrl_patches import Patch, mismatch
from nrl_patches.patches._shared import delta_net
from nrl_patches.patches._shared.arguments import with_argument
from nrl_patches.patches._shared.last_rows import LastRows
from nrl_patches.patches._shared.packing import is_traced, sequence_indices
from nrl_patches.patches._shared.wrapped import inside

if TYPE_CHECKING:
    import torch


def separate(patch: Patch, family: str, mixer: str, layer: str, attention_layer: str = "") -> None:
    """Declare the fixes of a patch that separate packed rows in the models of a family.

    Args:
        patch: The patch.
        family: The name of the family's package below ``transformers.models``.
        mixer: The name of the class of its linear attention.
        layer: That of its decoder layers.
        attention_layer: That of those with another kind of attention, if it is another.
    """
    module = f"transformers.models.{family}.modeling_{family}"
    for name, build in ((layer, hand_down), (attention_layer, refuse_leaks)):
        if name:
            patch.fix(
                f"{module}:{name}.forward",
                guard=lambda forward: mismatch(
                    forward, parameters="self hidden_states attention_mask position_ids kwargs"
                ),
            )(build)
    patch.rewrite(f"{module}:{mixer}.forward", delta_net.read_sequences)


def hand_down(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a decoder layer that hands the sequences of packed rows to its mixer.

    A layer with another kind of attention takes them from its mask. It refuses sequences that this knows nothing of.

    Args:
        forward: Upstream's.
    """
    names = list(inspect.signature(forward).parameters)

    def forward_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = dict(zip(names, (self, *args), strict=False)) | kwargs
        mixer = _mixer(self)
        if mixer is None:
            _refuse_leak(self, call)
        elif _is_upstreams(type(mixer)):
            index = _index(call, call.get("attention_mask"))
            if index is not None:
                told = delta_net.Sequences(call.get("attention_mask"), index)
                args, kwargs = with_argument(names[1:], args, kwargs, "attention_mask", told)
        return forward(self, *args, **kwargs)

    return forward_apart


def refuse_leaks(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a decoder layer without linear attention that refuses what its mask does not separate.

    Args:
        forward: Upstream's.
    """
    names = list(inspect.signature(forward).parameters)

    def forward_refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_leak(self, dict(zip(names, (self, *args), strict=False)) | kwargs)
        return forward(self, *args, **kwargs)

    return forward_refusing


def _mixer(layer: Any) -> Any:
    """Return the linear attention of a decoder layer, without what lies around it; None if it has none."""
    mixer = layer.linear_attn if hasattr(layer, "linear_attn") else None
    if mixer is None and getattr(layer, "block_type", None) == "linear_attention":
        mixer = layer.self_attn
    return inside(mixer)


def _is_upstreams(mixer: type) -> bool:
    """Whether the forward of a mixer is upstream's, or that of a subclass. Others' have means of their own."""
    return any(getattr(kind, "forward", _mixer).__module__.startswith("transformers.") for kind in mixer.__mro__)


def _index(call: Mapping[str, Any], mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return the index of each token's sequence by all that a decoder layer was told, None if no row is packed."""
    hidden, positions = call["hidden_states"], call.get("position_ids")
    told = (positions, mask, call.get("seq_idx"), call.get("cu_seq_lens_q"))
    if hidden.shape[1] == 1 or all(tensor is None for tensor in (positions, *told[2:])):
        return None
    if is_traced(hidden):
        return _read(hidden, *told)
    return _last.read(hidden, told, functools.partial(_read, hidden, *told))


_last: LastRows[torch.Tensor | None] = LastRows()


def _read(hidden: Any, positions: Any, mask: Any, seq_idx: Any, cu_seq_lens: Any) -> torch.Tensor | None:
    mask = mask != 0 if mask is not None and len(mask.shape) == 2 else None  # noqa: PLR2004
    if positions is not None and len(positions.shape) == 3:  # noqa: PLR2004
        # Up to 5.3, Qwen3.5's layers get those in time, height and width. Only a first token is the lowest in each.
        positions = positions.amax(0)
    found = None if positions is None else sequence_indices(hidden, positions, mask)
    starts = _union(hidden, found, *_by_keyword(hidden, seq_idx, cu_seq_lens))
    return starts.cumsum(-1) if starts is not None and (is_traced(hidden) or bool(starts.any())) else None


def _by_keyword(hidden: torch.Tensor, seq_idx: Any, cu_seq_lens: Any) -> tuple[Any, Any]:
    """Return the index of each token's sequence by the keywords of kernels."""
    import torch

    batch, length = hidden.shape[:2]
    if cu_seq_lens is not None:
        tokens = torch.arange(batch * length, device=hidden.device)
        cu_seq_lens = torch.bucketize(tokens, cu_seq_lens.to(hidden.device), right=True).view(batch, length)
    return seq_idx, cu_seq_lens


def _union(hidden: torch.Tensor, *indices: torch.Tensor | None) -> torch.Tensor | None:
    """Return where a sequence begins by any of several indices, but for the first of each row."""
    import torch

    starts = None
    for index in indices:
        if index is not None and index.shape[-1] == hidden.shape[1]:
            begins = torch.nn.functional.pad(index.to(hidden.device).diff() != 0, (1, 0)).expand(hidden.shape[:2])
            starts = begins if starts is None else starts | begins
    return starts


def _refuse_leak(layer: Any, call: Mapping[str, Any]) -> None:
    """Raise if the mask of an attention doesn't separate sequences that only its keyword arguments tell of."""
    import torch

    hidden, mask = call["hidden_states"], call.get("attention_mask")
    by_keyword = _by_keyword(hidden, call.get("seq_idx"), call.get("cu_seq_lens_q"))
    starts = _union(hidden, *by_keyword)
    if starts is None or hidden.shape[1] == 1 or is_traced(hidden):
        return
    config = getattr(getattr(layer, "self_attn", None), "config", None)
    flash = mask is None and "flash" in (getattr(config, "_attn_implementation", None) or "")
    positions = call.get("position_ids")
    known = _union(
        hidden,
        None if positions is None else sequence_indices(hidden, positions, None),
        by_keyword[1] if flash else None,
    )
    starts = starts if known is None else starts & ~known
    if isinstance(mask, torch.Tensor) and mask.shape[-2:] == (hidden.shape[1],) * 2:
        before = mask.diagonal(-1, -2, -1)[:, 0].expand(hidden.shape[0], -1)
        starts = starts[:, 1:] & (before if before.dtype == torch.bool else before > -1)
    elif not (mask is None or (isinstance(mask, torch.Tensor) and len(mask.shape) == 2)):  # noqa: PLR2004
        return
    if bool(starts.any()):
        raise ValueError(
            "packed sequences that only cu_seq_lens_q or seq_idx tell of are not separated by this attention: "
            "pass position_ids that restart with each of them too"
        )
