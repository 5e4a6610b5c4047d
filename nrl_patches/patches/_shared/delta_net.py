"""What a mixer of linear attention calls: rules and convolutions that start anew with each sequence of a packed row."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import kernel_rows
from nrl_patches.patches._shared.packing import is_traced

if TYPE_CHECKING:
    import torch

FORGET = -30.0
"""The logarithm of the decay where a sequence begins.

What is left of the state before, 1e-13, is below float32's resolution. The rules add decays up within a chunk and
subtract the sums, which costs digits: with sequences of five tokens 1e-5 is lost, and 5e-5 with -100.
"""

CONVOLUTIONS = {"conv1d", "causal_conv1d_fn", "q_conv1d", "k_conv1d", "v_conv1d"}
RULES = {"chunk_gated_delta_rule", "torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention"}


class Sequences(NamedTuple):
    """What a decoder layer hands to its mixer as the mask of packed rows.

    Attributes:
        mask: The mask.
        index: The index in its row of each token's sequence, ``(batch, length)``.
    """

    mask: torch.Tensor | None
    index: torch.Tensor


def read_sequences(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of a mixer so that what it calls separates the sequences which it is handed.

    Args:
        function: Upstream's.

    Returns:
        The same with another mask and other callees.

    Raises:
        MismatchError: It does not call one rule and a convolution.
    """
    helper = "_delta_net"
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    found = {"convolve": 0, "apply": 0}
    for call in calls:
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        kind = "convolve" if name in CONVOLUTIONS else "apply" if name in RULES else None
        if kind:
            found[kind] += 1
            call.func = ast.parse(f"{helper}.{kind}({ast.unparse(call.func)}, _sequences)", mode="eval").body
    if found["apply"] != 1 or not found["convolve"]:
        raise MismatchError("calls of one delta rule and of a convolution", str(found))
    at = 1 if ast.get_docstring(function) else 0
    function.body[at:at] = ast.parse(
        f"from {__name__.rpartition('.')[0]} import delta_net as {helper}\n"
        f"attention_mask, _sequences = {helper}.taken(attention_mask)"
    ).body
    return function


def taken(mask: Any) -> tuple[Any, torch.Tensor | None]:
    """Return the mask and the index of each token's sequence, of what a mixer was given as its mask.

    Args:
        mask: A mask, :class:`Sequences` or None.
    """
    return (mask.mask, mask.index) if isinstance(mask, Sequences) else (mask, None)


def _takes(function: Callable[..., Any], name: str, index: torch.Tensor) -> bool:
    """Whether a function is a kernel that takes an argument; in a graph, where what it is told are values, none is."""
    return not is_traced(index) and kernel_rows.takes(function, name)


def apply(rule: Callable[..., Any], index: torch.Tensor | None) -> Callable[..., Any]:
    """Return a delta rule that forgets its state where a sequence begins; the same one if there is no index.

    Args:
        rule: Of this release or of `fla`.
        index: The index of each token's sequence.
    """
    if index is None:
        return rule

    def apply_apart(query: Any, key: Any, value: Any, *args: Any, g: Any, **kwargs: Any) -> Any:
        import torch

        # Upstream's own ignores these or refuses them.
        kwargs = {name: given for name, given in kwargs.items() if name not in {"cu_seqlens", "seq_idx"}}
        # What is packed on top of earlier tokens has a state for each row, where a kernel wants one for each sequence.
        if not args and kwargs.get("initial_state") is None and _takes(rule, "cu_seqlens", index):
            return kernel_rows.by_lengths(rule, index, query, key, value, g=g, **kwargs)
        begins = torch.nn.functional.pad(index.diff() != 0, (1, 0))
        g = torch.where(begins.view(*begins.shape, *[1] * (g.dim() - 2)), FORGET, g)
        return rule(query, key, value, *args, g=g, **kwargs)

    return apply_apart


def convolve(convolution: Callable[..., Any], index: torch.Tensor | None) -> Callable[..., Any]:
    """Return a causal convolution that sees no other sequence; the same one if there is no index.

    Args:
        convolution: A module, or a function of the weight.
        index: The index of each token's sequence.
    """
    if index is None:
        return convolution
    import torch

    if not isinstance(convolution, torch.nn.Module):
        return _function_apart(convolution, index)
    base = getattr(convolution, "base_layer", convolution)  # PEFT's.
    size = base.kernel_size[0]
    hooked = hasattr(convolution, "_hf_hook") or convolution._forward_hooks or convolution._forward_pre_hooks

    # By the module itself, in whose place may be one with an adapter.
    def module_apart(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("use_precomputed"):
            return convolution(states, *args, **kwargs)
        if type(convolution) is torch.nn.Conv1d and not hooked:
            return _taps(states, index, convolution.weight.squeeze(1), convolution.bias)
        if not kwargs:
            windows = _windows(states, index, size)
            seen = convolution(windows.movedim(1, 2).flatten(0, 1))[..., size - 1]
            return seen.unflatten(0, (states.shape[0], -1)).movedim(1, 2)
        # OLMo's has the channels last, and returns the state to be kept too.
        _, state = convolution(states, *args, **kwargs)
        windows = _windows(states.movedim(1, 2), index, size)
        seen = convolution(windows.permute(0, 2, 3, 1).flatten(0, 1))
        return seen[0][:, -1].unflatten(0, (states.shape[0], -1)), state

    return module_apart


def _taps(states: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a causal convolution of each channel that sees no other sequence: tap by tap, which spares windows.

    Args:
        states: Those of each token, ``(batch, channels, length)``.
        index: The index of each token's sequence. What comes before, of a cache, belongs to the first.
        weight: That of the convolution, ``(channels, size)``.
        bias: Its bias.
    """
    import torch

    pad, length = torch.nn.functional.pad, states.shape[-1]
    index = pad(index, (length - index.shape[-1], 0))
    seen = states * weight[:, -1:]
    for back in range(1, weight.shape[-1]):
        same = index == pad(index, (back, 0), value=-1)[..., :length]
        moved = torch.where(same[:, None], pad(states, (back, 0))[..., :length], 0)
        seen = seen + moved * weight[:, -1 - back, None]
    return seen if bias is None else seen + bias[:, None]


def _windows(states: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Return what each token sees of its own sequence.

    Args:
        states: Those of each token, ``(batch, channels, length)``.
        index: The index of each token's sequence. What comes before, of a cache, belongs to the first.
        size: That of the kernel.

    Returns:
        The states, ``(batch, channels, length, size)``; 0 for those of other sequences.
    """
    import torch

    before = states.shape[-1] - index.shape[-1]
    index = torch.nn.functional.pad(index, (before, 0))
    same = torch.nn.functional.pad(index, (size - 1, 0)).unfold(-1, size, 1) == index[..., None]
    return torch.where(same[:, None], torch.nn.functional.pad(states, (size - 1, 0)).unfold(-1, size, 1), 0)


def _has_channels_last(states: torch.Tensor) -> bool:
    """Whether a kernel takes `seq_idx` with states, ``(batch, channels, length)``, by how they lie in memory."""
    batch, channel, token = states.stride()
    return bool(channel == 1 and token > 1 and batch % 8 == token % 8 == 0)


def _function_apart(convolution: Callable[..., Any], index: torch.Tensor) -> Callable[..., Any]:
    import torch

    def convolve_apart(x: Any, weight: Any, bias: Any = None, activation: Any = None, **kwargs: Any) -> Any:
        if _takes(convolution, "seq_idx", index) and _has_channels_last(x):
            told = torch.nn.functional.pad(index, (x.shape[-1] - index.shape[-1], 0)).to(torch.int32)
            return convolution(x, weight, bias, activation=activation, **kwargs | {"seq_idx": told.contiguous()})
        from transformers.activations import ACT2FN

        seen = _taps(x, index, weight, bias)
        return (seen if activation is None else ACT2FN[activation](seen)).to(x.dtype)

    return convolve_apart
