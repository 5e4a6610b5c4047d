"""Where the sequences of packed rows begin, by positions that restart, by `seq_idx` and by `cu_seq_lens_q`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from nrl_patches.patches._shared.packing import sequence_indices

if TYPE_CHECKING:
    import torch

Bounds: TypeAlias = "tuple[tuple[int, ...], ...]"

REFUSAL = (
    "packed rows of a state-space model cannot be compiled: the state would run across their sequences. "
    "Run the model uncompiled, or pass one sequence per row"
)


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


def bounds(hidden: Any, positions: Any, mask: Any, *by_keyword: Any, flash: bool) -> Bounds | None:
    """Return where the sequences of packed rows begin, by all that tells of them.

    Args:
        hidden: What is packed; its first dimensions are ``(batch, length)``.
        positions: The positions, ``(batch, length)`` or ``(1, length)``; None if there are none.
        mask: False for padding, ``(batch, length)``; None if there is none.
        by_keyword: `seq_idx`, ``(batch, length)``, and `cu_seq_lens_q`, ``(sequences + 1,)``; None if not given.
        flash: Whether the attention takes `cu_seq_lens_q`.

    Returns:
        For each row, where its sequences begin, and its length; None if none is packed.

    Raises:
        ValueError: The attention would mix them, as it is not told of all.
    """
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


def refuse_graph(hidden: torch.Tensor, *told: Any) -> None:
    """Put a check into a graph that no row is packed, which is not known while it is made.

    Args:
        hidden: What may be packed, as for :func:`bounds`.
        told: What tells of it: the positions, the mask, `seq_idx` and `cu_seq_lens_q`.
    """
    import torch

    # What is exported or recorded runs elsewhere, where nothing is packed.
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        by_positions, by_index, by_lengths = _starts(hidden, *told)
        torch._assert_async(~(by_positions | by_index | by_lengths).any(), REFUSAL)
