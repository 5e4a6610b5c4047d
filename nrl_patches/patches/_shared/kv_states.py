"""The keys and values that KV-shared layers share, and their gradients.

Reentrant checkpointing runs a layer first without gradients and again in the backward pass, each layer with its own
graph. What a reader gets there from its donor ends in the reader's graph, so the carrier gives it leaves, collects the
gradient that arrives at them, and adds it where the donor's graph is differentiated, which comes later.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nrl_patches.engine.log import tell
from nrl_patches.errors import FailedError, Problem
from nrl_patches.hosts.door import is_strict

if TYPE_CHECKING:
    import torch


class CarriedGradients(dict[tuple[Any, int], Any]):
    """The gradients of a donor's keys (0) and values (1) that wait for the donor's own backward pass.

    Attributes:
        fetched: What donors have fetched. What arrives later is lost, unless another backward pass fetches it.
        reported: Whether a loss was reported.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetched: set[tuple[Any, int]] = set()
        self.reported = False

    def carry(self, slot: tuple[Any, int], leaf: torch.Tensor) -> None:
        """Take the gradient that has arrived at a leaf, and add it to what its donor is owed.

        Args:
            slot: The donor, and 0 for its keys or 1 for its values.
            leaf: What a reader got in their place, ``(batch, kv_heads, length, head_dim)``; its ``grad`` becomes None.
        """
        gradient, leaf.grad = leaf.grad, None
        self[slot] = self[slot] + gradient if slot in self else gradient

    def fetch(self, slot: tuple[Any, int], gradient: torch.Tensor) -> torch.Tensor | None:
        """Return the gradient of a donor's own attention plus what was carried; None, to keep it, if nothing was.

        Args:
            slot: The donor, and 0 for its keys or 1 for its values.
            gradient: What flows back through the donor's own attention, ``(batch, kv_heads, length, head_dim)``.
        """
        self.fetched.add(slot)
        carried = self.pop(slot, None)
        return None if carried is None else gradient + carried.to(gradient.device)

    def watch(self, output: torch.Tensor) -> None:
        """Check, at the end of each backward pass that begins at the model's output, for what came too late.

        Without it the only sign would be a slightly wrong gradient, so it is reported before an optimizer's step.

        Args:
            output: The last hidden state, ``(batch, length, hidden)``.
        """
        output.register_hook(self._watch_pass)

    def _watch_pass(self, _: torch.Tensor) -> None:
        import torch

        torch.autograd.Variable._execution_engine.queue_callback(self._report_lost)

    def _report_lost(self, *, may_raise: bool = True) -> None:
        lost = sorted({str(donor) for donor, index in self if (donor, index) in self.fetched})
        if lost and not self.reported:
            self.reported = True
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
        """Report what was lost in backward passes that began elsewhere."""
        self._report_lost(may_raise=False)


class SharedStates:
    """Keys and values of the donor layers, each ``(batch, kv_heads, length, head_dim)``, by the donor.

    Deliberately not a mapping: FSDP2 and accelerate copy mappings on the way to a layer, and a copy shares nothing.

    Args:
        states: Those that the caller of the model has passed, by donor.
        traced: Whether torch's compiler may trace through the write of a checkpointed layer.
    """

    def __init__(self, states: Mapping[Any, Any] | None = None, *, traced: bool = True) -> None:
        import torch

        self.states: dict[Any, tuple[torch.Tensor, torch.Tensor]] = dict(states) if states else {}
        self.traced = traced
        self.learning = torch.is_grad_enabled()
        self.reentrant = False  # Some layer ran without gradients although the model runs with them.
        self.forwarded = False  # The model's forward is over: layers that run now are recomputed.
        self.gradless: set[Any] = set()  # The donors that ran without gradients.
        self.asking: set[Any] = set()  # The donors that ran with gradients and fetch what reentrant readers carry.
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
            return  # These have their own graph, which another backward pass no longer finds.
        # Inside a checkpointed layer dynamo refuses to write to objects from outside of it, because in eager mode the
        # recomputation writes a second time. Here both writes have the same values.
        if self.traced and torch.compiler.is_compiling():
            allow = getattr(torch._dynamo.utils, "_disable_side_effect_safety_checks_for_current_subtracer", _call)
            allow(_store, self.states, donor, states)
        else:
            self.states[donor] = states

    def visited_by(self, layer: int) -> None:
        """Write to the carrier in each layer whose traced checkpoint would be wrong: dynamo then gives up tracing it.

        Args:
            layer: The index of the layer.
        """
        if not self.traced:
            self.visitor = layer

    def to(self, device: torch.device, *, non_blocking: bool = False) -> SharedStates:
        """Move the states to the device of the next layers, as accelerate does in a model on several devices.

        Args:
            device: The device.
            non_blocking: As in ``torch.Tensor.to``.

        Returns:
            This carrier: the states are moved in place, so that all layers keep sharing it.
        """
        import torch

        with torch.set_grad_enabled(self.learning):  # A reentrant layer calls this without gradients, and others read.
            for donor, states in self.states.items():
                keys, values = (state.to(device, non_blocking=non_blocking) for state in states)
                if keys is not states[0] and any(state.requires_grad for state in states):
                    self.unmoved.setdefault(donor, states)
                self.states[donor] = keys, values
        return self

    def watch(self, output: torch.Tensor) -> None:
        """Have the backward passes of the model's output report gradients that came too late.

        Args:
            output: The last hidden state, ``(batch, length, hidden)``.
        """
        if output.requires_grad:
            _outside_of_graphs(self._carried().watch, output)

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
            else:  # Frozen: it needs no gradient.
                carried.pop((donor, index), None)

    def _carried(self) -> CarriedGradients:
        if self.gradients is None:
            self.gradients = CarriedGradients()
        return self.gradients


def _outside_of_graphs(function: Callable[..., Any], *args: Any) -> Any:
    """Call what torch's compiler cannot trace: it breaks its graph here, or raises under ``fullgraph``."""
    import torch

    return torch.compiler.disable(function)(*args) if torch.compiler.is_compiling() else function(*args)


def _store(states: dict[Any, Any], donor: Any, pair: Any) -> None:
    states[donor] = pair


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
