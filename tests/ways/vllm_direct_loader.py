"""Every way to hand a weight to vLLM's default loader under layerwise reload; a way returns 0 if it is as by a load.

Uninitialised memory is NaN here, so a value that was not written cannot be right by chance.
"""

import copy
import pickle
import threading
from functools import partial
from types import SimpleNamespace

import torch

from nrl_patches.patches._shared import layerwise_reload as tiny
from nrl_patches.patches._shared import nemotron_vl

BOTH = {"first": 2.0, "last": 3.0}


def default(param, weight):
    from vllm.model_executor.model_loader import weight_utils

    return weight_utils.default_weight_loader(param, weight)


def by_keyword(param, weight):
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    return default_weight_loader(loaded_weight=weight, param=param)


def its_own(param, weight):
    return param.weight_loader(param, weight)


def doubled(param, loaded_weight, shard=None):
    """A loader of a parameter's own, which whoever asks for the default one has good reason not to take."""
    param.data.copy_(loaded_weight * 2)
    return shard


def sharding(param, loaded_weight):
    """A loader of a parameter's own that takes this rank's half, and refuses what is a half already."""
    mine, _ = loaded_weight.split(len(param))
    param.data.copy_(mine)


def by_default_inside(param, loaded_weight):
    """A loader of a parameter's own that leaves the copy to the default one, as those that shard do."""
    return default(param, loaded_weight * 2)


def of_a_shard(param, loaded_weight, shard):
    """A loader of a parameter's own that cannot be called with a weight alone, as those of experts."""
    param.data.copy_(loaded_weight * shard)


def layer(*, buffers=False, **loaders):
    model = tiny.layer(**loaders)
    if not buffers:
        model._buffers.clear()
    return model


def nested():
    model = layer()
    model.blocks = torch.nn.ModuleList([layer(), torch.nn.Sequential(layer())])
    return model


def reload(model, *streams, send=default):
    """Reload; a stream is a list of names and values, and of the function that is to send each if not ``send``."""
    from vllm.model_executor.model_loader.reload import layerwise

    layerwise.record_metadata_for_reloading(model)
    with tiny.visible_garbage(), torch.no_grad():
        for stream in streams:
            layerwise.initialize_layerwise_reload(model)
            weights = dict(model.named_parameters())
            for name, value, *by in stream:
                (*by, send)[0](weights[name], torch.full(weights[name].shape, value))
            layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))


def compare(model, expected, *streams, send=default):
    """Return 1.0 unless the values are those, in the memory that they were in, which CUDA graphs read."""
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    reload(model, *streams, send=send)
    moved = places != {name: weight.data_ptr() for name, weight in model.named_parameters()}
    kept = all(type(weight) is torch.nn.Parameter for weight in model.parameters())
    return float(tiny.values(model) != expected or moved or not kept)


def both(model=None, send=default):
    return compare(model or layer(), BOTH, list(BOTH.items()), send=send)


def in_another_thread():
    """While this one loads by a parameter's own loader, inside of which nothing may be handed over."""
    seen = []

    def inside(param, loaded_weight):
        if param.is_meta and not seen:
            seen.append(0)
            thread = threading.Thread(target=lambda: seen.append(both()))
            thread.start()
            thread.join()
        default(param, loaded_weight)

    wrong = both(layer(first=inside), its_own)
    return wrong + seen[1]


def in_batches():
    """As NeMo RL sends: one reload, several calls of ``load_weights``."""
    from vllm.model_executor.model_loader.reload import layerwise

    model = layer()
    layerwise.record_metadata_for_reloading(model)
    with tiny.visible_garbage():
        layerwise.initialize_layerwise_reload(model)
        for name, value in BOTH.items():
            default(dict(model.named_parameters())[name], torch.full((4,), value))
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
        # What comes after has memory, and is written at once.
        default(model.first, torch.full((4,), 7.0))
    return float(tiny.values(model) != BOTH | {"first": 7.0})


def tied():
    """A parameter of two layers, which a load sends once."""
    model = torch.nn.Module()
    model.embed, model.head = layer(), layer()
    model.head.first = model.embed.first
    expected = {"embed.first": 2.0, "embed.last": 3.0, "head.last": 1.0}
    reload(model, [("embed.first", 2.0), ("embed.last", 3.0)])
    return float(tiny.values(model) != expected or model.head.first is not model.embed.first)


def negating():
    """Return a method of quantisation that changes the sign of one weight after each load."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    class Negates(QuantizeMethodBase):
        create_weights = apply = None

        def process_weights_after_loading(self, layer):
            layer.first = torch.nn.Parameter(-layer.first, requires_grad=False)

    return Negates()


def quantised():
    """A layer that is processed after each load."""
    model = layer(first=doubled)
    model.quant_method = negating()
    return compare(model, {"first": -4.0, "last": 5.0}, list(BOTH.items()), [("first", 4.0), ("last", 5.0)])


def without_data():
    """A weight that was moved to the parameter's device has no data, so the parameter keeps what it has."""
    return compare(layer(), dict.fromkeys(BOTH, 1.0), [("first", 2.0, lambda p, w: default(p, w.to(p.device)))])


def of_a_wrong_shape():
    """What a load refuses is refused, and what was sent before and after is written."""

    def send(param, weight):
        try:
            default(param, torch.ones(3))
        except AssertionError:
            default(param, weight)
        else:
            raise AssertionError("a wrong shape is accepted")

    return both(send=send)


def projector(times=1, size=2):
    """The projector of Nemotron Nano VL, by the real class's own ``load_weights``, in batches."""
    from vllm.model_executor.model_loader import reload as upstream

    model = nemotron_vl.tiny_model(layers=0)
    weights = dict(model.mlp1.named_parameters())
    assert weights
    upstream.record_metadata_for_reloading(model)
    wrong = 0.0
    with tiny.visible_garbage():
        for value in range(2, 2 + times):
            upstream.initialize_layerwise_reload(model)
            sent = [(f"mlp1.{name}", torch.full_like(weight, value)) for name, weight in weights.items()]
            sent.append(("language_model.weight", torch.ones(1)))
            for start in range(0, len(sent), size):
                model.load_weights(iter(sent[start : start + size]))
            upstream.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.bfloat16))
            wrong += sum(float((weight != value).any()) for weight in model.mlp1.parameters())
    return wrong


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "by position", both
    yield "by keyword", partial(both, send=by_keyword)
    yield "the last first", lambda: compare(layer(), BOTH, list(BOTH.items())[::-1])
    yield "three times", lambda: compare(layer(), dict.fromkeys(BOTH, 4.0), *[[(n, 4.0) for n in BOTH]] * 3)
    yield "nothing", lambda: compare(layer(), dict.fromkeys(BOTH, 1.0), [])
    yield "one of two, the other by its own loader", lambda: compare(layer(), BOTH, [("first", 2.0), mixed()])
    yield "in batches", in_batches
    yield (
        "nested modules",
        lambda: compare(
            nested(),
            dict.fromkeys(tiny.values(nested()), 1.0) | {"blocks.0.first": 2.0, "blocks.0.last": 3.0},
            [("blocks.0.first", 2.0), ("blocks.0.last", 3.0)],
        ),
    )
    yield (
        "with buffers",
        lambda: compare(layer(buffers=True), BOTH | {"constant": 8.0, "derived": 5.0}, list(BOTH.items())),
    )
    yield "one of two", lambda: compare(layer(), {"first": 2.0, "last": 1.0}, [("first", 2.0)])
    yield "past a loader of its own", lambda: both(layer(first=doubled, last=doubled))
    yield "past a loader that shards", lambda: both(layer(first=sharding, last=sharding))
    yield (
        "past a loader of its own, then by it",
        lambda: compare(
            layer(first=doubled, last=doubled),
            {"first": 4.0, "last": 10.0},
            list(BOTH.items()),
            [("first", 2.0, its_own), ("last", 5.0, its_own)],
        ),
    )
    yield (
        "past a loader of its own, of which another takes",
        lambda: compare(
            layer(first=doubled, last=doubled), {"first": 2.0, "last": 6.0}, [("first", 2.0), ("last", 3.0, its_own)]
        ),
    )
    yield (
        "past a loader that must be told of a shard",
        lambda: compare(layer(first=of_a_shard), dict.fromkeys(BOTH, 1.0), [("first", 2.0)]),
    )
    yield (
        "by its own loader, which takes the default one",
        lambda: compare(
            layer(first=by_default_inside), {"first": 4.0, "last": 3.0}, [(*entry, its_own) for entry in BOTH.items()]
        ),
    )
    yield "twice, the last counts", lambda: compare(layer(), BOTH, [("first", 9.0), *BOTH.items()])
    yield "tied", tied
    yield "quantised", quantised
    yield "without data", without_data
    yield "of a wrong shape", of_a_wrong_shape
    yield "in another thread", in_another_thread
    yield "in inference mode", in_inference_mode
    yield "Nemotron's projector", projector
    yield "Nemotron's projector, twice, one by one", partial(projector, times=2, size=1)
    yield "deepcopy", lambda: both(copy.deepcopy(layer()))
    yield "pickle", lambda: both(pickle.loads(pickle.dumps(layer())))


def mixed():
    return "last", 3.0, its_own


def in_inference_mode():
    with torch.inference_mode():
        return both()
