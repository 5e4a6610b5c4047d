"""Every stream that vLLM's layerwise reload may be given; a way returns 0 if each tensor is what it ought to be.

Uninitialised memory is NaN here, so a value that was not kept cannot be right by chance.
"""

import copy
import pickle
from functools import partial

import torch

from nrl_patches.patches._shared import layerwise_reload as tiny

KEPT = {"first": 1.0, "last": 1.0, "constant": 8.0, "derived": 5.0}


def layer(**loaders):
    return tiny.layer(**loaders)


def nested():
    model = tiny.layer()
    model.blocks = torch.nn.ModuleList([tiny.layer(), torch.nn.Sequential(tiny.layer())])
    return model


def compare(model, *streams):
    """Reload, and return 1.0 unless every tensor has the value that was sent last, or the one it had."""
    expected = tiny.values(model)
    for stream in streams:
        expected |= stream
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with tiny.visible_garbage():
        tiny.reload(model, *streams)
    # CUDA graphs read the memory that they were captured with.
    moved = places != {name: weight.data_ptr() for name, weight in model.named_parameters()}
    return float(tiny.values(model) != expected or moved)


def changed(change):
    return compare(change(layer()), {"first": 2.0}, {"last": 3.0})


def in_inference_mode():
    with torch.inference_mode():
        return compare(layer(), {"first": 2.0})


def in_part(method=None):
    """Fill the first half of a fused parameter, as one sent projection of several does; return 1.0 unless the rest is
    kept, which a quantised layer cannot promise."""

    def load_half(param, weight):
        param.data[:2].copy_(weight[:2])

    model = layer(first=load_half)
    if method:
        model.quant_method = type(method, (), {})()
    with tiny.visible_garbage():
        tiny.reload(model, {"first": 2.0})
    return float(model.first.tolist() != [2.0, 2.0, 1.0, 1.0] or tiny.values(model) != KEPT | {"first": 2.0})


def alias():
    """A buffer that is a view of a parameter of a layer below, as Mamba's ``conv_weights`` is."""
    model = layer()
    model.below = layer()
    model.below._buffers.clear()  # So that it is complete before the one that holds the view.
    model.register_buffer("view", model.below.first.view(2, 2), persistent=False)
    with tiny.visible_garbage():
        sent = {f"below.{name}": 2.0 for name in ("first", "last")} | {"first": 3.0, "last": 3.0}
        tiny.reload(model, sent)
    return float(model.below.first.tolist() != [2.0] * 4 or model.view.flatten().tolist() != [2.0] * 4)


def composed():
    """All parameters, of which the first has a loader that copies twice, to a layer without buffers."""
    from vllm.model_executor.model_loader import weight_utils

    loader = weight_utils.composed_weight_loader(weight_utils.default_weight_loader, lambda weight: -weight)
    model = layer(first=loader)
    model._buffers.clear()
    with tiny.visible_garbage():
        tiny.reload(model, {"first": 2.0, "last": 3.0}, {"first": 4.0, "last": 5.0})
    return float(tiny.values(model) != {"first": -4.0, "last": 5.0})


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "one parameter", partial(lambda: compare(layer(), {"first": 2.0}))
    yield "one parameter, then the other", partial(lambda: compare(layer(), {"first": 2.0}, {"last": 3.0}))
    yield "one parameter, three times", lambda: compare(layer(), *[{"last": value} for value in (2.0, 3.0, 4.0)])
    yield "all parameters", lambda: compare(layer(), {"last": 3.0, "first": 2.0})
    yield "nothing", lambda: compare(layer(), {})
    yield "nested modules", lambda: compare(nested(), {"blocks.0.first": 2.0, "blocks.1.0.last": 3.0})
    yield "half of a parameter", in_part
    yield "half of a parameter, unquantised", partial(in_part, "UnquantizedLinearMethod")
    yield "a view of a parameter below", alias
    yield "a composed loader", composed
    yield "in inference mode", in_inference_mode
    yield "deepcopy", partial(changed, copy.deepcopy)
    yield "pickle", partial(changed, lambda model: pickle.loads(pickle.dumps(model)))
