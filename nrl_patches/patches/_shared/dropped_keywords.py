"""`seq_idx` and `cu_seq_lens_q` that a model takes among its keyword arguments, and hands to none of its layers."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nrl_patches.patches._shared.packing import is_traced
from nrl_patches.patches._shared.sequences_told import bounds, refuse_graph

if TYPE_CHECKING:
    import torch


def refuse(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a forward of a model that refuses sequences which only dropped keyword arguments tell of.

    Args:
        forward: Upstream's. Where it hands its keyword arguments on, they are none of this one's business.
    """
    names = list(inspect.signature(forward).parameters)[1:]
    drops = _drops(forward)

    def forward_refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if drops and not (kwargs.get("seq_idx") is None and kwargs.get("cu_seq_lens_q") is None):
            _refuse(dict(zip(names, args, strict=False)) | kwargs)
        return forward(self, *args, **kwargs)

    return forward_refusing


def _drops(forward: Callable[..., Any]) -> bool:
    """Whether a forward takes any keyword argument, and hands those that it does not name to nothing but its loss."""
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(forward))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return False
    if not isinstance(function, ast.FunctionDef) or function.args.kwarg is None:
        return False
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    rest = (None, function.args.kwarg.arg)
    taken = {ast.unparse(call.func) for call in calls for k in call.keywords if (k.arg, ast.unparse(k.value)) == rest}
    return taken <= {"self.loss_function"}


def _refuse(call: Mapping[str, Any]) -> None:
    embeddings = call.get("inputs_embeds")
    inputs: torch.Tensor | None = call.get("input_ids") if embeddings is None else embeddings
    if inputs is None or inputs.shape[1] == 1:
        return
    mask = call.get("attention_mask")
    # On top of earlier tokens it may be of these too.
    mask = mask if mask is not None and mask.shape == inputs.shape[:2] else None
    told = (call.get("position_ids"), mask, call.get("seq_idx"), call.get("cu_seq_lens_q"))
    if is_traced(inputs):
        refuse_graph(inputs, *told)
    else:
        bounds(inputs, *told, flash=False)


def unheeded(model: Any) -> float | str:
    """Return what becomes of `seq_idx` without positions.

    Args:
        model: A causal language model of :mod:`state_space_models`.

    Returns:
        How far the logits of packed sequences are from those of each alone, where no layer is given it; else who takes
        it or refuses it.
    """
    import torch

    lengths = (5, 1, 6)
    tokens = 3 + torch.arange(sum(lengths))[None] % (model.config.vocab_size - 3)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    given: list[bool] = []

    def note(_layer: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given.append("seq_idx" in kwargs)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in model.model.layers]
    try:
        with torch.no_grad():
            packed = model(input_ids=tokens, use_cache=False, seq_idx=index.to(torch.int32)).logits
    except (NotImplementedError, TypeError, ValueError) as error:
        if not any(given) and not any(word in str(error) for word in ("seq_idx", "unexpected keyword")):
            raise
        return "given to layers" if any(given) else f"refused: {type(error).__name__}"
    finally:
        for hook in hooks:
            hook.remove()
    if any(given):
        return "given to layers"
    with torch.no_grad():
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in tokens.split(lengths, 1)], 1)
    return float((packed - alone).abs().max())
