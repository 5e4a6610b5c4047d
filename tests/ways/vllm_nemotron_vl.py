"""Every stream that may carry the layer norm of Nemotron VL; a way returns how far the features are from normalised.

The model is the real class around a tower that returns its pixels: ``nemotron_tower.py`` has the real tower.
"""

import copy
from functools import partial
from types import SimpleNamespace

import torch

from nrl_patches.patches._shared import nemotron_vl

PIXELS = [1.0, -1.0, 1.0, -1.0]
NORMALISED = [4.0, -2.0, 4.0, -2.0]


def difference(model, expected=NORMALISED):
    seen = nemotron_vl.features(model, PIXELS)
    return max(abs(one - other) for one, other in zip(seen, expected, strict=True))


def stream(prefix=nemotron_vl.PREFIXES[0]):
    return [
        ("language_model.weight", torch.ones(1)),
        *nemotron_vl.stream(scale=3.0, shift=1.0, prefix=prefix),
        ("vision_model.radio_model.weight", torch.ones(1)),
    ]


def loaded(carry=list, prefix=nemotron_vl.PREFIXES[0], change=None, copied=lambda model: model):
    model = nemotron_vl.tiny_model(change=change)
    model.load_weights(weights=carry(stream(prefix)))
    return difference(copied(model))


def in_batches(size):
    model, weights = nemotron_vl.tiny_model(), stream()
    for start in range(0, len(weights), size):
        model.load_weights(iter(weights[start : start + size]))
        model.load_weights(iter([]))
    return difference(model)


def from_one_buffer():
    """By a sender that uses one buffer for all tensors, as soon as the consumer asks for the next."""

    def sent():
        for name, weight in stream():
            buffer[: len(weight)] = weight
            yield name, buffer[: len(weight)]

    model, buffer = nemotron_vl.tiny_model(), torch.zeros(4)
    model.load_weights(sent())
    return difference(model)


def reloaded(times=1):
    """By layerwise reload, where the release has it."""
    from vllm.model_executor.model_loader import reload

    model = nemotron_vl.tiny_model()
    reload.record_metadata_for_reloading(model)
    for _ in range(times):
        reload.initialize_layerwise_reload(model)
        model.load_weights(stream())
        reload.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.bfloat16))
    return difference(model)


def without_further_tokens():
    """A checkpoint that has no layer norm by upstream's rule."""
    model = nemotron_vl.tiny_model(layers=0)
    model.load_weights([("language_model.weight", torch.ones(1))])
    return difference(model, PIXELS)


def deep_copy(model):
    model.config = None  # A mock.
    copied = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data.zero_()
    return copied


def subclass(kind):
    return type("MyNemotron", (kind,), {"__module__": kind.__module__})


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "a list", loaded
    yield "an iterator", partial(loaded, iter)
    yield "the module's own name", partial(loaded, prefix=nemotron_vl.PREFIXES[1])
    yield "in batches of one", partial(in_batches, 1)
    yield "in batches of two", partial(in_batches, 2)
    yield "from one buffer", from_one_buffer
    yield "layerwise reload", reloaded
    yield "layerwise reload twice", partial(reloaded, times=2)
    yield "no further tokens", without_further_tokens
    yield "a subclass of the model", partial(loaded, change=subclass)
    yield "deepcopy", partial(loaded, copied=deep_copy)
