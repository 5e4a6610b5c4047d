"""The path of Mamba-2 mixers that calls CUDA kernels: the dtype of what it projects, and a way to go it on the CPU.

On the CPU the kernels of mamba-ssm and causal-conv1d are replaced by their recurrences, which return the dtype of
their input, as the kernels do. Everything else is transformers' own.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from nrl_patches import Observation
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import nemotron_h
from nrl_patches.patches._shared.quiet import quiet

TOLERANCE = 0.02
"""How far two paths in bfloat16 are from each other at most, relatively; 0.006 was seen."""

_EXPECTED = "two calls of self.out_proj, and nothing named input_dtype"


def projects_in_input_dtype(function: ast.FunctionDef) -> ast.FunctionDef:
    """Have the mixer cast what it projects to the dtype of its input, as its path without kernels does.

    Args:
        function: The syntax of ``cuda_kernels_forward``.

    Returns:
        The same, with a statement in front of the others.

    Raises:
        MismatchError: It does not project twice.
    """
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "self.out_proj"]
    if len(calls) != 2 or "input_dtype" in names or any(len(call.args) != 1 for call in calls):  # noqa: PLR2004
        raise MismatchError(_EXPECTED, "; ".join(map(ast.unparse, calls)) or "no call")
    for call in calls:
        projected = ast.unparse(call.args[0]).removesuffix(".to(self.out_proj.weight.dtype)")
        call.args = [ast.parse(f"{projected}.to(input_dtype)", mode="eval").body]
    first = int(ast.get_docstring(function) is not None)
    function.body[first:first] = ast.parse("input_dtype = hidden_states.dtype").body
    return function


@contextmanager
def on_the_cpu(mixer: Any) -> Iterator[Callable[..., Any]]:
    """Yield the path with kernels of a mixer, which may be called inside a ``with`` block.

    Args:
        mixer: A mixer of Mamba-2.
    """
    forward = getattr(mixer, "cuda_kernels_forward", None)
    if forward is None:  # From 5.15.0 on there is one path, whose functions kernels replace from outside.
        yield mixer.forward
        return
    modules = (sys.modules[kind.__module__] for kind in type(mixer).__mro__)
    module = next(module for module in modules if hasattr(module, "mamba_chunk_scan_combined"))
    kernels: dict[str, Any] = {
        "mamba_chunk_scan_combined": _scan,
        "selective_state_update": _update_state,
        "causal_conv1d_update": _update_conv,
        "causal_conv1d_fn": None,
    }
    with mock.patch.multiple(module, **kernels):
        yield forward


def float32_norm(mixer: Any) -> Any:
    """Return the mixer in bfloat16 but for its norm, as QLoRA and other recipes keep norms.

    Args:
        mixer: A mixer of Mamba-2.
    """
    import torch

    mixer.to(torch.bfloat16).norm.float()
    return mixer


def packed_projection(mixer: Any) -> Any:
    """Return the mixer in bfloat16 with a weight of bytes in its projection, as 4-bit quantization has it.

    Args:
        mixer: A mixer of Mamba-2.
    """
    import torch

    class Packed(torch.nn.Linear):  # type: ignore[misc, unused-ignore]
        def __init__(self, linear: Any) -> None:
            super().__init__(linear.in_features, linear.out_features, bias=False)
            self.unpacked = linear.weight.detach().clone()
            del self.weight
            self.register_buffer("weight", self.unpacked.view(torch.uint8))

        def forward(self, input: Any) -> Any:  # noqa: A002 - torch's name
            return torch.nn.functional.linear(input.to(self.unpacked.dtype), self.unpacked).to(input.dtype)

    mixer.to(torch.bfloat16).out_proj = Packed(mixer.out_proj)
    return mixer


def zamba2() -> Any:
    """Return a mixer of Zamba2 with random weights, on the CPU."""
    from transformers import Zamba2Config
    from transformers.models.zamba2.modeling_zamba2 import Zamba2MambaMixer

    config = Zamba2Config(hidden_size=32, n_mamba_heads=8, mamba_d_state=8, chunk_size=8)
    return _random(Zamba2MambaMixer(config, layer_idx=0))


def nemotron() -> Any:
    """Return a mixer of Nemotron-H with random weights, on the CPU."""
    return _random(nemotron_h.tiny_model().model.layers[0].mixer)


def apart(mixer: Any) -> float:
    """Return how far its path with kernels is from that without, relatively.

    Args:
        mixer: A mixer in bfloat16.
    """
    import torch

    hidden = torch.randn(2, 6, mixer.in_proj.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad(), on_the_cpu(mixer) as forward:
        one, two = forward(hidden).float(), getattr(mixer, "torch_forward", mixer.forward)(hidden).float()
    return float((one - two).norm() / two.norm())


def observe(mixer: Callable[[], Any]) -> Observation:
    """Compare the two paths of a mixer, with a norm in float32 and with a packed projection.

    Args:
        mixer: Makes one.

    Returns:
        The defect is present if a path raises, or the two differ.
    """
    evidence: dict[str, float | str] = {}
    for change in (float32_norm, packed_projection):
        with quiet():
            try:
                evidence[change.__name__] = round(apart(change(mixer())), 4)
            except RuntimeError as error:
                evidence[change.__name__] = str(error)
    return Observation(any(isinstance(far, str) or not far < TOLERANCE for far in evidence.values()), evidence)


def _scan(  # noqa: PLR0913 - mamba-ssm's arguments
    x: Any,
    dt: Any,
    A: Any,  # noqa: N803 - mamba-ssm's names
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    *,
    D: Any,  # noqa: N803
    dt_bias: Any,
    **_: Any,
) -> tuple[Any, Any]:
    """Stand for ``mamba_chunk_scan_combined`` of mamba-ssm, by its recurrence; see there for the arguments."""
    import torch

    batch, length, heads, width = x.shape
    state = torch.zeros(batch, heads, width, B.shape[-1])
    dt, dt_bias, D = (t[..., None].expand(*t.shape, width) for t in (dt, dt_bias, D))  # noqa: N806
    A = A[:, None, None].expand(heads, width, B.shape[-1])  # noqa: N806
    steps = [_update_state(state, x[:, i], dt[:, i], A, B[:, i], C[:, i], D, dt_bias=dt_bias) for i in range(length)]
    return torch.stack(steps, 1), state


def _update_state(  # noqa: PLR0913, PLR0917 - mamba-ssm's arguments
    state: Any,
    x: Any,
    dt: Any,
    A: Any,  # noqa: N803 - mamba-ssm's names
    B: Any,  # noqa: N803
    C: Any,  # noqa: N803
    D: Any,  # noqa: N803
    *,
    dt_bias: Any,
    **_: Any,
) -> Any:
    """Stand for ``selective_state_update`` of mamba-ssm; see there for the arguments."""
    import torch

    step = torch.nn.functional.softplus(dt.float() + dt_bias.float())[..., None]
    B, C = (  # noqa: N806
        t.float().repeat_interleave(x.shape[1] // t.shape[1], 1)[:, :, None] for t in (B, C)
    )
    new = state.clone() * torch.exp(step * A.float()) + step * B * x.float()[..., None]
    state.copy_(new)
    return ((new * C).sum(-1) + D.float() * x.float()).to(x.dtype)


def _update_conv(x: Any, conv_state: Any, weight: Any, bias: Any, _: str) -> Any:
    """Stand for ``causal_conv1d_update`` of causal-conv1d; see there for the arguments."""
    import torch

    conv_state.copy_(torch.cat([conv_state[..., 1:], x[..., None].to(conv_state.dtype)], -1))
    return torch.nn.functional.silu((conv_state.float() * weight.float()).sum(-1) + bias.float()).to(x.dtype)


def _random(mixer: Any) -> Any:
    import torch

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in mixer.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape))
    return mixer.eval()
