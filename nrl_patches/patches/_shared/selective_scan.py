"""The scan of Mamba-1 layers, begun from the state that a cache has.

The state decays from token to token apart from what the tokens add to it. What is left of it can therefore be added to
the outputs of any scan that began with an empty one, upstream's in PyTorch or a kernel.
"""

from __future__ import annotations

import ast
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches.errors import MismatchError

if TYPE_CHECKING:
    import torch

SCAN, STEP = "mamba_selective_scan", "mamba_selective_state_update"
"""What the forward of a mixer calls for several tokens, and for one on top of a cache."""

_DECODES = "seq_len == 1"
_EXPECTED = f"`if … and {_DECODES}` with a call of {STEP}, otherwise of {SCAN}"


def begin_from_cache(function: ast.FunctionDef) -> ast.FunctionDef:
    """Rewrite the forward of a mixer so that its scan begins from the state that a single token would go on from.

    Args:
        function: Upstream's.

    Returns:
        The same with another callee.

    Raises:
        MismatchError: It does not choose between the two in one place.
    """
    choices = [node for node in ast.walk(function) if isinstance(node, ast.If) and _is_choice(node)]
    if len(choices) != 1:
        raise MismatchError(_EXPECTED, f"{len(choices)} of them")
    (choice,) = choices
    (step,), (scan,) = _calls(choice.body, STEP), _calls(choice.orelse, SCAN)
    filled = " and ".join(ast.unparse(value) for value in choice.test.values[:-1])  # type: ignore[attr-defined]
    state = f"{ast.unparse(step.args[0])} if {filled} else None"
    scan.func = ast.parse(f"_selective_scan.begun_from({state}, {ast.unparse(scan.func)})", mode="eval").body
    at = int(ast.get_docstring(function) is not None)
    function.body[at:at] = ast.parse(
        f"from {__name__.rpartition('.')[0]} import selective_scan as _selective_scan"
    ).body
    return function


def _is_choice(node: ast.If) -> bool:
    test = node.test
    if not isinstance(test, ast.BoolOp) or not isinstance(test.op, ast.And):
        return False
    if ast.unparse(test.values[-1]) != _DECODES or len(_calls(node.body, STEP)) != 1:
        return False
    return len(_calls(node.orelse, SCAN)) == 1


def _calls(statements: list[ast.stmt], name: str) -> list[ast.Call]:
    nodes = (node for statement in statements for node in ast.walk(statement))
    return [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


def begun_from(state: torch.Tensor | None, scan: Callable[..., Any]) -> Callable[..., Any]:
    """Return a scan that begins from a state; the same one if there is none.

    Args:
        state: The state, ``(batch, width, size)``.
        scan: Upstream's, of this release or of a kernel, which begins with an empty one.
    """
    if state is None:
        return scan

    def scan_on(  # noqa: PLR0913 - upstream's arguments
        hidden_states: torch.Tensor,
        dt: torch.Tensor,
        A: torch.Tensor,  # noqa: N803 - upstream's names
        B: torch.Tensor,  # noqa: N803
        C: torch.Tensor,  # noqa: N803
        *,
        z: torch.Tensor,
        delta_bias: torch.Tensor | None,
        **how: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        output, last = scan(hidden_states, dt, A, B, C, z=z, delta_bias=delta_bias, **how)
        dt = dt.float() if delta_bias is None else dt.float() + delta_bias.float()[:, None]
        passed = torch.nn.functional.softplus(dt).cumsum(-1)
        # A copy, as the cache writes over its own before gradients are computed.
        before = state.to(passed.device, torch.float32, copy=True)
        heard = torch.zeros_like(passed)
        # One element of the state after the other, as all at once would take as many times the memory.
        for i in range(before.shape[-1]):
            heard = heard + C[:, i, None] * torch.exp(A[:, i, None] * passed) * before[..., i, None]
        output = (output + heard * torch.nn.functional.silu(z)).to(output.dtype)
        return output, (last + torch.exp(A * passed[..., -1:]) * before).to(last.dtype)

    return scan_on


def tell_of_filled_cache(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Build a `prepare_inputs_for_generation` that says once what `generate` reads on top of a filled cache.

    Without attention layers a cache has no length by which the tokens that it has could be cut off.

    Args:
        prepare: Upstream's.
    """

    def prepare_and_tell(self: Any, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("cache", kwargs.get("cache_params"))
        filled = getattr(cache, "has_previous_state", None)
        if kwargs.get("is_first_iteration") and callable(filled) and filled():
            tell_once(type(self).__name__)
        return prepare(self, *args, **kwargs)

    return prepare_and_tell


@functools.cache
def tell_once(model: str) -> None:
    """Warn, once of each kind of model.

    Args:
        model: The name of its class.
    """
    logging.getLogger("nrl_patches").warning(
        "%s.generate reads all that it is given on top of a filled cache: give it the new tokens only. (A cache of "
        "state-space layers alone does not know how many tokens it has read.)",
        model,
    )
