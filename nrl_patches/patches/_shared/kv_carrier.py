"""How the states of the KV-shared layers get from layer to layer: the carrier, and the fixes that pass it on.

In models with ``num_kv_shared_layers > 0`` the last layers have no keys and values of their own: each reads those of
the last layer before them that has the same attention type, its donor. The carrier takes them there. The text model's
forward creates it and passes it on among the keyword arguments, through whatever wraps the layers; it lives as long as
a layer may still have to be recomputed, so that models, threads and steps cannot share one by accident.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nrl_patches import Patch, mismatch
from nrl_patches.declaration import Guard
from nrl_patches.patches._shared.kv_projections import note_idle_projections
from nrl_patches.patches._shared.kv_states import SharedStates

if TYPE_CHECKING:
    import torch

CARRIER = "nrl_kv_sharing"
"""A keyword argument that no release knows, and that therefore reaches the attention unchanged."""


class CacheView:
    """What the attention of a release before the fix gets as its cache: the real one, if any, and the carrier.

    Args:
        cache: The cache of the caller; None in training, under ``use_cache=False`` and in checkpointed layers.
        shared_layers: The carrier, under the name that the attention looks for.
    """

    def __init__(self, cache: Any, shared_layers: SharedStates) -> None:
        self.cache = cache
        self.shared_layers = shared_layers

    def update(self, keys: torch.Tensor, values: torch.Tensor, *where: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values to the real cache, if there is one.

        Args:
            keys: Those of this step, ``(batch, kv_heads, length, head_dim)``.
            values: Those of this step, of the same shape.
            where: The index of the layer and the cache's own arguments.

        Returns:
            The keys and values of all steps; without a cache, those of this step.
        """
        return (keys, values) if self.cache is None else self.cache.update(keys, values, *where)


def hand_down_states(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a text model's forward that gives its layers a carrier.

    Args:
        forward: Upstream's ``TextModel.forward``, which passes unknown keyword arguments on to its layers.
    """
    # What Gemma 3n writes in place is wrong in a checkpoint that was traced, and right where the graph breaks for it,
    # as it does for upstream's own mapping.
    traced = "gemma3n" not in forward.__module__
    mapping = _mapping_of(forward)

    def forward_with_carrier(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.config.num_kv_shared_layers == 0 or CARRIER in kwargs:
            return forward(self, *args, **kwargs)
        visible = None
        if mapping is not None and (kwargs.get("return_shared_kv_states") or "shared_kv_states" in kwargs):
            visible = kwargs["shared_kv_states"] = mapping(kwargs.get("shared_kv_states"))
        carrier = kwargs[CARRIER] = SharedStates(visible, traced=traced)
        output = forward(self, *args, **kwargs)
        carrier.forwarded = True
        if carrier.reentrant:
            carrier.watch(output[0])
        if visible is not None:
            visible.update(carrier.states)
        return output

    return forward_with_carrier


def read_through_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build an attention's forward that finds the carrier where it looks for its cache.

    Args:
        forward: Upstream's ``TextAttention.forward``, with the parameter ``past_key_values``.
    """
    position = position_of("past_key_values", forward)

    def forward_with_view(self: Any, *args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.pop(CARRIER, None)
        if carrier is not None:
            carrier.visited_by(self.layer_idx)
            note_idle_projections(self)
            args = replaced(args, kwargs, position, "past_key_values", lambda cache: CacheView(cache, carrier))
        return forward(self, *args, **kwargs)

    return forward_with_view


def read_from_argument(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build an attention's forward that gets the carrier in place of the mapping that it expects as an argument.

    Args:
        forward: Upstream's ``TextAttention.forward``, with the parameter ``shared_kv_states``.
    """
    position = position_of("shared_kv_states", forward)

    def forward_with_argument(self: Any, *args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.pop(CARRIER, None)
        if carrier is not None:
            carrier.visited_by(self.layer_idx)
            args = replaced(args, kwargs, position, "shared_kv_states", lambda _: carrier)
        return forward(self, *args, **kwargs)

    return forward_with_argument


def position_of(parameter: str, forward: Callable[..., Any]) -> int:
    """Return the position of a parameter among those after ``self``, from 0.

    Args:
        parameter: The name of the parameter.
        forward: A method of which it is a positional parameter.
    """
    return list(inspect.signature(forward).parameters).index(parameter) - 1


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, parameter: str, build: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """Replace an argument by what is built from it, whether it was passed by position, by keyword or not at all.

    Args:
        args: The positional arguments of a call, without ``self``.
        kwargs: The keyword arguments of the call; changed in place.
        position: The position of the parameter, see :func:`position_of`.
        parameter: Its name.
        build: Called with the argument, None if it was not passed; returns the new one.

    Returns:
        The positional arguments with the new one in place.
    """
    if len(args) > position:
        return (*args[:position], build(args[position]), *args[position + 1 :])
    kwargs[parameter] = build(kwargs.get(parameter))
    return args


def check_runs_layers(forward: Callable[..., Any]) -> str | None:
    """Check that a text model passes keyword arguments that it does not know on to its layers.

    Args:
        forward: The forward of the text model.

    Returns:
        None if it does, otherwise the difference.
    """
    return mismatch(forward, parameters="self use_cache kwargs", attributes="layers")


def check_plain_dict(forward: Callable[..., Any]) -> str | None:
    """Check that a text model makes the mapping itself, as a plain dict; upstream's fix makes a ``UserDict``.

    Args:
        forward: The forward of the text model.

    Returns:
        None if it does, otherwise the difference.
    """
    missing = check_runs_layers(forward)
    if missing is None and mismatch(forward, attributes="UserDict") is None:
        return "hands the states down in a UserDict, which FSDP2 leaves alone"
    return missing


def check_shares_states(forward: Callable[..., Any]) -> str | None:
    """Check that an attention takes the states as an argument, and that a donor stores its own in it.

    Args:
        forward: The forward of the attention.

    Returns:
        None if it does, otherwise the difference.
    """
    return mismatch(forward, parameters="self shared_kv_states kwargs", attributes="store_full_length_kv")


def share_by_argument(patch: Patch, family: str, prefix: str, *, guard: Guard = check_runs_layers) -> None:
    """Declare the fixes by which the layers of a family share through a carrier instead of upstream's mapping.

    Args:
        patch: The patch.
        family: The name of the family's package.
        prefix: That of its classes.
        guard: What the text model's forward must be.
    """
    module = f"transformers.models.{family}.modeling_{family}:{prefix}"
    patch.fix(f"{module}TextModel.forward", guard=guard)(hand_down_states)
    patch.fix(f"{module}TextAttention.forward", guard=check_shares_states)(read_from_argument)


def _mapping_of(forward: Callable[..., Any]) -> Callable[[Any], Any] | None:
    """Return the factory of the mapping that the text model takes and returns; None up to 5.7, without either."""
    innermost = inspect.unwrap(forward)
    if "shared_kv_states" not in innermost.__code__.co_consts:
        return None
    names, defined = innermost.__code__.co_names, innermost.__globals__
    if "KVSharingDict" not in names:
        new = defined["UserDict"] if "UserDict" in names else dict
        return lambda given: new() if given is None else given
    new = defined["KVSharingDict"]
    return lambda given: given if isinstance(given, new) else new(given)
