"""Time steps of Mamba-2 layers: the limits that a configuration sets, and whether a model keeps to them.

A configuration has two pairs of bounds. What the weights are initialised by are `time_step_min` and `time_step_max`;
`time_step_limit` is what time steps are held to in a forward, and mamba-ssm's `dt_limit`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from nrl_patches import Observation
from nrl_patches.patches._shared.quiet import quiet
from nrl_patches.patches._shared.state_space_models import tiny_model

FAMILIES = ("NemotronH", "Zamba2")
"""The prefixes of the classes whose mixers do not keep to the limit."""

TOLERANCE = 1e-5
"""How far two outputs with the same time steps are apart at most, relatively; 0.0 was seen."""


def hold_to_limit(init: Callable[..., None]) -> Callable[..., None]:
    """Build a constructor of a mixer that takes the limit from where the configuration has it.

    Args:
        init: transformers' ``__init__`` of the mixer.
    """

    @wraps(init)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        # Zamba2's configuration no longer declares it, and keeps what a checkpoint says of it: null.
        limit = getattr(self.config, "time_step_limit", None)
        self.time_step_limit = (0.0, float("inf")) if limit is None else tuple(limit)

    return initialize


def observe(*, separate_paths: bool) -> Observation:
    """Look what the logits of tiny models depend on, without kernels.

    Args:
        separate_paths: Whether to look at releases whose mixers have a path of their own without kernels, or at those
            that have a single one.

    Returns:
        The defect is present if those of any family depend on ``time_step_min``, or do not depend on the limit.
    """
    import transformers

    evidence: dict[str, float | str] = {}
    with quiet():
        for family in FAMILIES:
            if not hasattr(transformers, f"{family}ForCausalLM"):
                evidence[family] = "absent"
            elif has_separate_paths(family) is not separate_paths:
                evidence[family] = "another path"
            else:
                evidence[f"{family}, time_step_min"] = of_initial_bound(family)
                evidence[f"{family}, time_step_limit"] = of_limit(family)
    return Observation(any(isinstance(gap, float) and not gap < TOLERANCE for gap in evidence.values()), evidence)


def has_separate_paths(family: str) -> bool:
    """Whether mixers of a family have a path of their own without kernels.

    Args:
        family: One of :data:`FAMILIES`.
    """
    return any(hasattr(mixer, "torch_forward") for mixer in mixers(tiny_model(family)))


def mixers(model: Any) -> list[Any]:
    """Return the mixers of Mamba-2 in a model.

    Args:
        model: A model of one of :data:`FAMILIES`.
    """
    return [module for module in model.modules() if hasattr(module, "dt_bias")]


def with_time_steps(family: str, bias: float, **changes: Any) -> Any:
    """Return a tiny model whose time steps are about as large as one likes.

    Args:
        family: One of :data:`FAMILIES`.
        bias: Of the time steps, in front of their softplus.
        changes: Fields of its configuration that differ.
    """
    import torch

    model = tiny_model(family, **changes)
    with torch.no_grad():
        for mixer in mixers(model):
            mixer.dt_bias.fill_(bias)
    return model


def of_initial_bound(family: str) -> float:
    """Return how far another ``time_step_min`` takes the logits, relatively; it has no part in them.

    Args:
        family: One of :data:`FAMILIES`.
    """
    build = partial(with_time_steps, family, -7.0)
    return _apart(build(time_step_min=0.5), build(time_step_min=1e-12))


def of_limit(family: str) -> float:
    """Return how far other time steps take the logits, relatively, where the limit leaves a single one.

    Args:
        family: One of :data:`FAMILIES`.
    """
    build = partial(with_time_steps, family, time_step_limit=(0.05, 0.05))
    return _apart(build(2.0), build(-2.0))


def _apart(one: Any, two: Any) -> float:
    import torch

    tokens = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        first, second = (model(input_ids=tokens, use_cache=False).logits for model in (one, two))
    return round(float((first - second).norm() / second.norm()), 6)
