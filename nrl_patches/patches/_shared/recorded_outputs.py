"""Take what is recorded inside a layer out of reentrant checkpointing, together with what the layer returns.

Reentrant checkpointing runs a layer without gradients first, and gives them only to the tensors that the layer returns.
What transformers records of the modules inside is cut off, and so is what the layer returns in a tuple of its own. Here
the checkpointed function returns these as well, and what comes out of the checkpoint takes their place. The backward
pass runs the function again, which must not refer to the record: that has tensors whose graph refers to the function,
and would never be freed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Any

from nrl_patches.errors import Problem

_MISSING = object()


@dataclass(frozen=True)
class Recording:
    """What is recorded in a layer while it runs.

    Attributes:
        run: Calls a function with arguments, and returns its result and what was recorded, which is kept nowhere else.
        put: Adds such to the record of the model.
        added: Returns what was added to that since.
    """

    run: Callable[[Callable[..., Any], tuple[Any, ...]], tuple[Any, Any]]
    put: Callable[[Any], None]
    added: Callable[[], Any]


NOTHING = Recording(lambda function, args: (function(*args), ()), lambda _: None, tuple)
"""For a layer in which nothing is recorded."""


def tuples_inside(output: Any) -> dict[int, tuple[Any, ...]]:
    """Return what a layer returns in tuples inside of the one that it returns.

    Args:
        output: What it returns.

    Returns:
        These tuples, by their places.
    """
    there = output if type(output) is tuple else ()
    return {place: inner for place, inner in enumerate(there) if type(inner) is tuple}


def checkpointed(checkpoint: Callable[..., Any], recording: Recording, function: Any, *args: Any) -> Any:
    """Checkpoint a layer, and take all that it records and returns as it comes out of the checkpoint.

    Args:
        checkpoint: torch's ``checkpoint``, with its keywords.
        recording: Of the layer.
        function: The layer's, see ``GradientCheckpointingLayer``.
        args: Its arguments that may have gradients.

    Returns:
        What the layer returns.
    """
    from torch.utils import _pytree as pytree

    run = recording.run
    found: list[tuple[bool, int, list[int], Any]] = []

    def function_and_record(*inner: Any) -> Any:
        output, recorded = run(function, inner)
        leaves, spec = pytree.tree_flatten((recorded, tuples_inside(output)))
        if not leaves:
            return output
        own = output if type(output) is tuple else (output,)
        there, places = [*inner, *own], []
        for leaf in leaves:
            # Of a tensor that a function returns twice, autograd knows one place only.
            place = next((i for i, other in enumerate(there) if other is leaf), len(there))
            if place == len(there):
                there.append(leaf)
            places.append(place)
        found[:] = [(own is output, len(own), places, spec)]
        return tuple(there[len(inner) :])

    outputs = checkpoint(function_and_record, *args)
    if not found:
        return outputs
    is_tuple, count, places, spec = found[0]
    there = (*args, *outputs)
    recorded, inside = pytree.tree_unflatten([there[place] for place in places], spec)
    recording.put(recorded)
    return tuple(inside.get(*each) for each in enumerate(outputs[:count])) if is_tuple else outputs[0]


def by_hooks(active: Any) -> Recording | None:
    """Look for a record of transformers 5.2.0 or newer, whose hooks add to the one that is in use.

    Args:
        active: The variable that has it, lists by the name of an output.

    Returns:
        None if nothing is recorded.
    """
    record = active.get()
    if not record:
        return None
    counts = {key: len(entries) for key, entries in record.items() if isinstance(entries, list)}
    options = {key: value for key, value in record.items() if key not in counts}

    def run(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
        # The hooks count what is there: the input comes before the first of the hidden states.
        own = {**options, **{key: [None] * count for key, count in counts.items()}}
        with _in_use(active, own):
            output = function(*args)
        return output, {key: own[key][count:] for key, count in counts.items()}

    def put(recorded: dict[str, list[Any]]) -> None:
        for key, entries in recorded.items():
            record[key].extend(entries)

    return Recording(run, put, lambda: {key: record[key][count:] for key, count in counts.items()})


def by_forwards(layer: Any) -> Recording | None:
    """Look for records of transformers up to 5.1.0, which replaces the forward of modules while their model runs.

    Args:
        layer: The layer.

    Returns:
        None if nothing is recorded in it.
    """
    records: list[Any] = []
    own: dict[int, dict[str, tuple[Any, ...]]] = defaultdict(lambda: defaultdict(tuple))
    replaced = [(vars(module), vars(module).get("forward")) for module in layer.modules()]
    forwards = [(names, _recording(forward, records, own)) for names, forward in replaced if _records(forward)]
    if not forwards:
        return None
    counts = [{key: len(entries) for key, entries in record.items()} for record in records]

    def run(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
        for at, before in enumerate(counts):
            own[at].update({key: (None,) * count for key, count in before.items()})
        try:
            with contextlib.ExitStack() as stack:
                for names, forward in forwards:
                    stack.enter_context(replacing(names, "forward", forward))
                output = function(*args)
            return output, [_after(own[at], before) for at, before in enumerate(counts)]
        finally:
            for entries in own.values():
                entries.clear()

    def put(recorded: list[dict[str, Any]]) -> None:
        for record, found in zip(records, recorded, strict=True):
            for key, entries in found.items():
                record[key] += entries

    return Recording(run, put, lambda: [_after(*pair) for pair in zip(records, counts, strict=True)])


def may_record(layer: Any, active: Any) -> bool:
    """Tell, while a compiler traces a layer, whether something in it may be recorded.

    Args:
        layer: The layer.
        active: See :func:`by_hooks`; None for :func:`by_forwards`.

    Returns:
        False if certainly nothing is.
    """
    if active is None:
        return any("forward" in module.__dict__ for module in layer.modules())
    if active.compiling and not active.global_var:
        return False
    return any(len(module._forward_hooks) > 0 for module in layer.modules())


@contextlib.contextmanager
def replacing(names: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while.

    Args:
        names: The namespace of an object.
        name: Of the attribute.
        value: The other value.
    """
    before = names.get(name, _MISSING)
    names[name] = value
    try:
        yield
    finally:
        if before is _MISSING:
            names.pop(name, None)
        else:
            names[name] = before


def has_gradients(values: Any) -> bool:
    """Tell whether a tensor is part of a graph, or will have a gradient.

    Args:
        values: Nested values.

    Returns:
        Whether any of the tensors in them does.
    """
    from torch.utils import _pytree as pytree

    return any(getattr(leaf, "requires_grad", False) for leaf in pytree.tree_leaves(values))


def call_in_vain(call: Callable[..., Any], active: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a layer without gradients, and say once what that cuts off if it is done by a checkpoint around the layer.

    Args:
        call: Of layers.
        active: See :func:`by_hooks`; None for :func:`by_forwards`.
        layer: The layer.
        args: Its arguments: some have gradients under a reentrant checkpoint, and none have in a forward without any.
        kwargs: The same by keyword.

    Returns:
        What the layer returns.
    """
    from torch.utils import _pytree as pytree

    if not has_gradients((args, kwargs)):
        return call(layer, *args, **kwargs)
    recording = by_forwards(layer) if active is None else by_hooks(active)
    output = call(layer, *args, **kwargs)
    inside = tuples_inside(output) if kwargs.get("output_router_logits") else ()
    recorded = pytree.tree_leaves((recording and recording.added(), inside))
    if any(getattr(leaf, "is_floating_point", bool)() for leaf in recorded):
        _warn("what is around them, such as torch's checkpoint_wrapper")
    return output


def warn_if_cut_off(checkpoint: Any, output: Any, added: Any) -> None:
    """Say once if what was recorded in a layer that another function has checkpointed has no gradients.

    Args:
        checkpoint: That function.
        output: What the layer returns.
        added: What was recorded.
    """
    from torch.utils import _pytree as pytree

    def cut_off(leaf: Any) -> bool:
        return getattr(leaf, "is_floating_point", bool)() and not leaf.requires_grad

    if has_gradients(output) and any(map(cut_off, pytree.tree_leaves(added))):
        function = getattr(checkpoint, "func", checkpoint)
        _warn(f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}")


@functools.cache
def _warn(function: str) -> None:
    logging.getLogger("nrl_patches").warning(
        Problem(
            "transformers.recorded_outputs_reentrant_checkpointing",
            expected="checkpointed layers whose recorded outputs, such as logits of routers, have gradients",
            found=f"none, as the layers are checkpointed by {function}: a loss of these trains nothing",
            next_step="use torch's checkpointing, best with use_reentrant=False",
        )
    )


@contextlib.contextmanager
def _in_use(active: Any, record: Any) -> Iterator[None]:
    if active.compiling:  # Between two graphs of a compiled model, which share a variable that is of no thread.
        with replacing(vars(active), "global_var", record):
            yield
        return
    token = active.set(record)
    try:
        yield
    finally:
        active.reset(token)


def _records(forward: Any) -> bool:
    code = getattr(forward, "__code__", None)
    return code is not None and {"collected_outputs", "orig_forward"} <= {*code.co_freevars}


def _recording(forward: FunctionType, records: list[Any], own: dict[int, Any]) -> FunctionType:
    """Return a forward that records as one of transformers does, but elsewhere.

    Args:
        forward: That of transformers.
        records: Where that records, added to.
        own: Where the new one does, by the index of the other.
    """
    cells = dict(zip(forward.__code__.co_freevars, forward.__closure__ or (), strict=True))
    record, inner = cells["collected_outputs"].cell_contents, cells["orig_forward"].cell_contents
    if not any(other is record for other in records):
        records.append(record)
    at = next(i for i, other in enumerate(records) if other is record)
    cells["collected_outputs"] = CellType(own[at])
    if _records(inner):  # A model inside of another: both record.
        cells["orig_forward"] = CellType(_recording(inner, records, own))
    return FunctionType(forward.__code__, forward.__globals__, forward.__name__, None, tuple(cells.values()))


def _after(record: dict[str, tuple[Any, ...]], counts: dict[str, int]) -> dict[str, tuple[Any, ...]]:
    return {key: entries[counts.get(key, 0) :] for key, entries in record.items()}
