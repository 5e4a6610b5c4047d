"""What takes the states of the KV-shared layers from layer to layer, and their gradient back.

In models with ``num_kv_shared_layers > 0`` the last layers have no keys and values of their own: each reads those of
the last layer before them that has the same attention type, its donor. The carrier takes them there. It is made by the
text model's forward, handed down among the keyword arguments through whatever wraps the layers, and lives as long as a
layer may still have to be recomputed, so that models, threads and steps cannot meet in it.

Reentrant checkpointing runs a layer first without gradients and again in the backward pass, each layer with a graph of
its own. What a reader gets there from its donor ends in its own graph, so the carrier gives it leaves, takes the
gradient that arrives at them, and adds it where the donor's graph is differentiated, which comes later.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nrl_patches import Patch, objection_unless
from nrl_patches.declaration import Guard
from nrl_patches.engine.log import tell
from nrl_patches.errors import FailedError, Problem
from nrl_patches.hosts.door import is_strict
from nrl_patches.patches._shared.kv_projections import note_idle_projections

if TYPE_CHECKING:
    import torch

CARRIER = "nrl_kv_sharing"
"""The keyword argument that no release knows, so that it travels untouched from the text model to the attention."""


class CarriedGradients(dict[tuple[Any, int], Any]):
    """The gradients of a donor's keys (0) and values (1) that wait for the donor's own backward pass.

    Attributes:
        fetched: What a donor has asked for. If more of it arrives, and no other backward pass asks again, it was lost.
        told: Whether that was told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetched: set[tuple[Any, int]] = set()
        self.told = False

    def carry(self, slot: tuple[Any, int], leaf: torch.Tensor) -> None:
        """Take over the gradient that has arrived at what a reader was given."""
        gradient, leaf.grad = leaf.grad, None
        self[slot] = self[slot] + gradient if slot in self else gradient

    def fetch(self, slot: tuple[Any, int], gradient: torch.Tensor) -> torch.Tensor | None:
        """Return what the donor's own attention gives plus what was carried, None if nothing was."""
        self.fetched.add(slot)
        carried = self.pop(slot, None)
        return None if carried is None else gradient + carried.to(gradient.device)

    def watch(self, output: torch.Tensor) -> None:
        """Have each backward pass that begins at the model's output look at its end for what came too late.

        All that anybody would see of it is a gradient that is somewhat wrong, so it is told before an optimizer's step.
        """
        output.register_hook(self._watch_pass)

    def _watch_pass(self, _: torch.Tensor) -> None:
        import torch

        torch.autograd.Variable._execution_engine.queue_callback(self._tell_lost)

    def _tell_lost(self, *, may_raise: bool = True) -> None:
        lost = sorted({str(donor) for donor, index in self if (donor, index) in self.fetched})
        if lost and not self.told:
            self.told = True
            problem = Problem(
                "KV-shared layers under reentrant checkpointing",
                expected="the layers that share keys and values to be differentiated before those that own them",
                found=f"a gradient for the keys and values of {', '.join(lost)} that came afterwards, and is lost",
                next_step='use gradient_checkpointing_kwargs={"use_reentrant": False}',
            )
            if may_raise and is_strict():
                raise FailedError(str(problem))
            tell(logging.WARNING, problem)

    def __del__(self) -> None:
        """Tell of it where a backward pass began elsewhere."""
        self._tell_lost(may_raise=False)


class SharedStates:
    """Keys and values of the donor layers, each ``(batch, kv_heads, length, head_dim)``, by the donor.

    No mapping on purpose: FSDP2 and accelerate copy mappings on the way to a layer, and a copy shares nothing.

    Args:
        states: Those that the caller of the model has given.
        traced: Whether torch's compiler may trace through the write of a checkpointed layer.
    """

    def __init__(self, states: Mapping[Any, Any] | None = None, *, traced: bool = True) -> None:
        import torch

        self.states: dict[Any, tuple[torch.Tensor, torch.Tensor]] = dict(states) if states else {}
        self.traced = traced
        self.learning = torch.is_grad_enabled()
        self.reentrant = False  # Some layer ran without gradients, although the model runs with them.
        self.forwarded = False  # The model's forward is over: who comes now recomputes.
        self.gradless: set[Any] = set()  # The donors that ran without.
        self.asking: set[Any] = set()  # Those that ran with gradients and fetch what reentrant readers carry.
        self.unmoved: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self.gradients: CarriedGradients | None = None
        self.visitor: int | None = None

    def __contains__(self, donor: object) -> bool:
        """Whether the donor has stored its states."""
        return donor in self.states

    def __getitem__(self, donor: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states as this layer may use them."""
        import torch

        states = self.states[donor]
        if self.learning and not torch.is_grad_enabled():
            self.reentrant = True
            if donor not in self.asking and any(state.requires_grad for state in states):
                self.asking.add(donor)
                _outside_of_graphs(self._have_fetched, donor, self.unmoved.get(donor, states))
        elif self.reentrant and (self.forwarded or donor in self.gradless):
            return _outside_of_graphs(self._leaves, donor, states)  # type: ignore[no-any-return]
        return states

    def __setitem__(self, donor: Any, states: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Store the states of the first pass, and have those of a reentrant recomputation fetch what was carried."""
        import torch

        if self.learning and not torch.is_grad_enabled():
            self.reentrant = True
            self.gradless.add(donor)
        elif self.reentrant and self.forwarded:
            if donor in self.gradless:
                _outside_of_graphs(self._have_fetched, donor, states)
            return  # These have a graph of their own, which is gone when another backward pass comes.
        # Inside a checkpointed layer dynamo refuses to write to what was made outside of it, for fear of the second
        # write that the recomputation makes in eager mode. Here both writes carry the same values.
        if self.traced and torch.compiler.is_compiling():
            allow = getattr(torch._dynamo.utils, "_disable_side_effect_safety_checks_for_current_subtracer", _call)
            allow(_store, self.states, donor, states)
        else:
            self.states[donor] = states

    def visited_by(self, layer: int) -> None:
        """Write in each layer where a traced checkpoint would be wrong: for this dynamo gives up tracing it."""
        if not self.traced:
            self.visitor = layer

    def to(self, device: torch.device, *, non_blocking: bool = False) -> SharedStates:
        """Move the states to where the next layers are; accelerate asks for it in a model that several devices hold."""
        import torch

        with torch.set_grad_enabled(self.learning):  # A reentrant layer asks without gradients, and others read.
            for donor, states in self.states.items():
                keys, values = (state.to(device, non_blocking=non_blocking) for state in states)
                if keys is not states[0] and any(state.requires_grad for state in states):
                    self.unmoved.setdefault(donor, states)
                self.states[donor] = keys, values
        return self

    def watch(self, output: torch.Tensor) -> None:
        """Have the backward passes of the model's output tell which gradients came too late."""
        if output.requires_grad:
            self._carried().watch(output)

    def _leaves(self, donor: Any, states: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        carried, leaves = self._carried(), []
        for index, state in enumerate(states):
            leaf = state
            if state.requires_grad or donor in self.gradless:
                leaf = state.detach().requires_grad_()
                leaf.register_post_accumulate_grad_hook(functools.partial(carried.carry, (donor, index)))
            leaves.append(leaf)
        return tuple(leaves)

    def _have_fetched(self, donor: Any, states: tuple[torch.Tensor, torch.Tensor]) -> None:
        carried = self._carried()
        for index, state in enumerate(states):
            if state.requires_grad:
                state.register_hook(functools.partial(carried.fetch, (donor, index)))
            else:  # Frozen: nobody wants it.
                carried.pop((donor, index), None)

    def _carried(self) -> CarriedGradients:
        if self.gradients is None:
            self.gradients = CarriedGradients()
        return self.gradients


class CacheView:
    """What the attention of a release before the fix takes for its cache: the real one, if any, and the carrier.

    Args:
        cache: The cache of the caller; None in training, under ``use_cache=False`` and in checkpointed layers.
        shared_layers: The carrier, under the name that the attention looks for.
    """

    def __init__(self, cache: Any, shared_layers: SharedStates) -> None:
        self.cache = cache
        self.shared_layers = shared_layers

    def update(self, keys: torch.Tensor, values: torch.Tensor, *where: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to the real cache and return all of it; without one, return what came in."""
        return (keys, values) if self.cache is None else self.cache.update(keys, values, *where)


def hand_down_states(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build a text model's forward that gives its layers a carrier."""
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
            _outside_of_graphs(carrier.watch, output[0])
        if visible is not None:
            visible.update(carrier.states)
        return output

    return forward_with_carrier


def read_through_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Build an attention's forward that finds the carrier where it looks for its cache."""
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
    """Build an attention's forward that takes the carrier for the mapping that it expects as an argument."""
    position = position_of("shared_kv_states", forward)

    def forward_with_argument(self: Any, *args: Any, **kwargs: Any) -> Any:
        carrier = kwargs.pop(CARRIER, None)
        if carrier is not None:
            carrier.visited_by(self.layer_idx)
            args = replaced(args, kwargs, position, "shared_kv_states", lambda _: carrier)
        return forward(self, *args, **kwargs)

    return forward_with_argument


def position_of(parameter: str, forward: Callable[..., Any]) -> int:
    """Return where a parameter stands among those after ``self``."""
    return list(inspect.signature(forward).parameters).index(parameter) - 1


def replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, parameter: str, build: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """Replace an argument by what is built from it, whichever way it was passed; None where it was not.

    Returns:
        The positional arguments. Those by keyword are changed in place.
    """
    if len(args) > position:
        return (*args[:position], build(args[position]), *args[position + 1 :])
    kwargs[parameter] = build(kwargs.get(parameter))
    return args


def objection_unless_runs_layers(forward: Callable[..., Any]) -> str | None:
    """Guard: the text model passes what it does not know on to its layers."""
    return objection_unless(forward, parameters="self use_cache kwargs", attributes="layers")


def objection_unless_plain_dict(forward: Callable[..., Any]) -> str | None:
    """Guard: the text model makes the mapping itself, and no ``UserDict`` as upstream does since the fix."""
    missing = objection_unless_runs_layers(forward)
    if missing is None and objection_unless(forward, attributes="UserDict") is None:
        return "hands the states down in a UserDict, which FSDP2 leaves alone"
    return missing


def objection_unless_shares(forward: Callable[..., Any]) -> str | None:
    """Guard: the attention takes the states as an argument, and stores those of a donor in it."""
    return objection_unless(forward, parameters="self shared_kv_states kwargs", attributes="store_full_length_kv")


def share_by_argument(patch: Patch, family: str, prefix: str, *, guard: Guard = objection_unless_runs_layers) -> None:
    """Declare the fixes of a patch by which a family's layers share through a carrier, where upstream has a mapping.

    Args:
        patch: The patch.
        family: The name of the family's package.
        prefix: That of its classes.
        guard: What the text model's forward must be.
    """
    module = f"transformers.models.{family}.modeling_{family}:{prefix}"
    patch.fix(f"{module}TextModel.forward", guard=guard)(hand_down_states)
    patch.fix(f"{module}TextAttention.forward", guard=objection_unless_shares)(read_from_argument)


def _mapping_of(forward: Callable[..., Any]) -> Callable[[Any], Any] | None:
    """Return what makes the mapping that the text model takes and returns, None where it does neither (up to 5.7)."""
    innermost = inspect.unwrap(forward)
    if "shared_kv_states" not in innermost.__code__.co_consts:
        return None
    names, defined = innermost.__code__.co_names, innermost.__globals__
    if "KVSharingDict" not in names:
        new = defined["UserDict"] if "UserDict" in names else dict
        return lambda given: new() if given is None else given
    new = defined["KVSharingDict"]
    return lambda given: given if isinstance(given, new) else new(given)


def _outside_of_graphs(function: Callable[..., Any], *args: Any) -> Any:
    """Call what torch's compiler cannot trace: it breaks its graph here, or says under ``fullgraph`` that it cannot."""
    import torch

    return torch.compiler.disable(function)(*args) if torch.compiler.is_compiling() else function(*args)


def _store(states: dict[Any, Any], donor: Any, pair: Any) -> None:
    states[donor] = pair


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
