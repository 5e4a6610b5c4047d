"""Packed rows in layers of linear attention: the state and the convolution start anew with each sequence.

The decoder layer is the last that is told of the sequences, and what is recomputed under checkpointing. It hands them
to its mixer together with the mask, as the mask, so that they are an argument like any other to whatever lies between.
The mixer's code stays upstream's, but for what it calls.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from nrl_patches import Patch, mismatch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared.arguments import with_argument
from nrl_patches.patches._shared.packing import is_traced, sequence_indices

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
    patch.rewrite(f"{module}:{mixer}.forward", read_sequences)


def hand_down(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a decoder layer that hands the sequences of packed rows to its mixer.

    A layer with another kind of attention takes them from its mask. It refuses sequences that this knows nothing of.

    Args:
        forward: Upstream's.
    """
    names = list(inspect.signature(forward).parameters)
    for package in _NATIVE:
        _NATIVE[package] = package in sys.modules or importlib.util.find_spec(package) is not None

    def forward_apart(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = dict(zip(names, (self, *args), strict=False)) | kwargs
        mixer = _mixer(self)
        if mixer is None:
            _refuse_leak(self, call)
        elif _is_upstreams(type(mixer)):
            index = _index(call, call.get("attention_mask"))
            if index is not None:
                told = Sequences(call.get("attention_mask"), index)
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
    for wrapper in ("_checkpoint_wrapped_module", "_orig_mod"):
        mixer = getattr(mixer, wrapper, mixer)
    return mixer


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
    # Reading values makes the host wait for the device, and every layer is told the same.
    index = _last.recall(hidden, told)
    return _last.keep(hidden, told, _read(hidden, *told)) if index is _last else index


class _Last:
    """What was found last, by identity of what it was found in."""

    kept: tuple[Any, ...] = ()

    @staticmethod
    def _state(hidden: torch.Tensor, told: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if any(tensor is not None and tensor.is_inference() for tensor in told):
            return None  # They do not tell when they were changed.
        return hidden.device, hidden.shape[:2], *(None if tensor is None else tensor._version for tensor in told)

    def recall(self, hidden: torch.Tensor, told: tuple[Any, ...]) -> Any:
        """Return what was found, or this object itself if that was in something else."""
        if not self.kept:
            return self
        references, state, index = self.kept
        same = all((a and a()) is b for a, b in zip(references, told, strict=True))
        return index if same and state == self._state(hidden, told) else self

    def keep(self, hidden: torch.Tensor, told: tuple[Any, ...], index: Any) -> Any:
        """Keep what was found, and return it."""
        state = self._state(hidden, told)
        references = tuple(None if tensor is None else weakref.ref(tensor) for tensor in told)
        self.kept = () if state is None else (references, state, index)
        return index


_last = _Last()


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


_NATIVE = {"fla": False, "causal_conv1d": False}
"""Whether the packages of kernels are installed, which take the sequences as keyword arguments."""


def read_sequences(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of a mixer so that what it calls separates the sequences which it is handed.

    Args:
        function: Upstream's.

    Returns:
        The same with another mask and other callees.

    Raises:
        MismatchError: It does not call one rule and a convolution.
    """
    helper = "_linear_attention"
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
        f"from {__name__.rpartition('.')[0]} import linear_attention as {helper}\n"
        f"attention_mask, _sequences = {helper}.taken(attention_mask)"
    ).body
    return function


def taken(mask: Any) -> tuple[Any, torch.Tensor | None]:
    """Return the mask and the index of each token's sequence, of what a mixer was given as its mask.

    Args:
        mask: A mask, :class:`Sequences` or None.
    """
    return (mask.mask, mask.index) if isinstance(mask, Sequences) else (mask, None)


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

        if _NATIVE["fla"] and kwargs.get("cu_seqlens") is not None:
            return rule(query, key, value, *args, g=g, **kwargs)
        begins = torch.nn.functional.pad(index.diff() != 0, (1, 0))
        g = torch.where(begins.view(*begins.shape, *[1] * (g.dim() - 2)), FORGET, g)
        # Without `fla`, upstream's own ignores these or refuses them.
        kwargs = {name: given for name, given in kwargs.items() if name not in {"cu_seqlens", "seq_idx"}}
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


def _function_apart(convolution: Callable[..., Any], index: torch.Tensor) -> Callable[..., Any]:
    def convolve_apart(x: Any, weight: Any, bias: Any = None, activation: Any = None, **kwargs: Any) -> Any:
        if _NATIVE["causal_conv1d"] and kwargs.get("seq_idx") is not None:
            return convolution(x, weight, bias, activation=activation, **kwargs)
        from transformers.activations import ACT2FN

        seen = _taps(x, index, weight, bias)
        return (seen if activation is None else ACT2FN[activation](seen)).to(x.dtype)

    return convolve_apart
