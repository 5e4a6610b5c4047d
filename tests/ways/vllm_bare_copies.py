"""Every way to write into a parameter under layerwise reload; a way returns 0 if it is as by a load from disk.

Uninitialised memory is NaN here, so a value that was not written cannot be right by chance.
"""

import copy
import logging
import pickle
import threading
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
from ways.vllm_direct_loader import BOTH, negating, of_a_shard

from nrl_patches.patches._shared import deferred_writes
from nrl_patches.patches._shared import layerwise_reload as tiny

KEPT = dict.fromkeys(BOTH, 1.0)


class Model(torch.nn.Module):
    """A model of one layer, whose ``load_weights`` writes each weight by a function of the parameter and the weight."""

    def __init__(self, write, **loaders):
        super().__init__()
        self.write = write
        for name in BOTH:
            weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)
            if name in loaders:
                weight.weight_loader = loaders[name]
            setattr(self, name, weight)

    def load_weights(self, weights):
        params = dict(self.named_parameters())
        with torch.no_grad():
            return {name for name, weight in weights if (self.write(params[name], weight), True)}


class Nested(torch.nn.Module):
    """A model whose part has a ``load_weights`` of its own."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def load_weights(self, weights):
        self.part.load_weights((name.removeprefix("part."), weight) for name, weight in weights)


def by_data(param, weight):
    param.data.copy_(weight)


def by_copy(param, weight):
    param.copy_(weight)


def by_keyword(param, weight):
    torch.Tensor.copy_(param, other=weight, non_blocking=True)


def by_assignment(param, weight):
    param.data[:] = weight


def by_element(param, weight):
    for index, element in enumerate(weight):
        param.data[index].copy_(element)


def by_index(param, weight):
    param[torch.tensor([3, 0])] = weight[:2]
    param.data[1:3] = weight[1:3]


def by_mask(param, weight):
    mask = torch.tensor([True, False, True, False])
    param.data[mask] = weight[mask]
    param.data[~mask] = weight[0]


def by_slices(param, weight):
    view = param.narrow(0, 0, 2)
    view.copy_(weight[:2])
    param.data[2:].copy_(weight[2:])


def by_bytes(param, weight):
    param.data.view(torch.uint8).copy_(weight.view(torch.uint8))


def by_columns(param, weight):
    param.data.view(2, 2).t().copy_(weight.view(2, 2).t())


def by_broadcast(param, weight):
    param.data.copy_(weight[0])


def of_another_dtype(param, weight):
    param.data.copy_(weight.to(torch.bfloat16))


def twice(param, weight):
    param.data.copy_(weight * 3)
    param.data.copy_(weight)


def padded(param, weight):
    param.data.zero_()
    param.data[:3].copy_(weight[:3])
    param.data[3] = weight[3].item()


def on_its_device(param, weight):
    """As ColBERT does, whose weight has no data then."""
    param.data.copy_(weight.to(param.device))


def on_its_device_and_dtype(param, weight):
    """As ColPali does."""
    from vllm.model_executor.model_loader import weight_utils

    weight_utils.default_weight_loader(param, weight.to(device=param.device, dtype=param.dtype))


def on_its_device_twice(param, weight):
    param.data.copy_(weight.to(param.device).to(torch.float64))


def its_own(param, weight):
    getattr(param, "weight_loader", by_data)(param, weight)


def computed_on_its_device(param, weight):
    param.data.copy_(weight.to(param.device) * 1)


def multiplied(param, weight):
    param.mul_(weight)


def one_by_its_own_loader(param, weight):
    (by_data if weight[0] == BOTH["first"] else its_own)(param, weight)


def doubled(param, loaded_weight):
    """A loader of a parameter's own."""
    param.data.copy_(loaded_weight * 2)


def reload(model, *streams, finalise=True):
    """Reload by each stream, which is a dictionary, or several that are loaded one after the other."""
    from vllm.model_executor.model_loader.reload import layerwise

    layerwise.record_metadata_for_reloading(model)
    with tiny.visible_garbage():
        for stream in streams:
            layerwise.initialize_layerwise_reload(model)
            for batch in stream if isinstance(stream, list) else [stream]:
                model.load_weights((name, torch.full((4,), value)) for name, value in batch.items())
            if finalise:
                layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))


def compare(model, expected, *streams):
    """Return 1.0 unless the values are those, in the memory that they were in, which CUDA graphs read."""
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    reload(model, *streams)
    params = dict(model.named_parameters())
    moved = places != {name: weight.data_ptr() for name, weight in params.items()}
    kept = all(type(weight) is torch.nn.Parameter for weight in params.values())
    whole = all((weight == weight.flatten()[0]).all() for weight in params.values())
    watched = any("load_weights" in vars(module) for module in model.modules())
    return float(tiny.values(model) != expected or moved or not kept or not whole or watched)


def both(write, **loaders):
    return compare(Model(write, **loaders), BOTH, BOTH)


def said(model, *words, expected=KEPT, streams=(BOTH,)):
    """Return 0 if each parameter keeps its value and a warning has the words."""
    deferred_writes.warn.cache_clear()
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("nrl_patches")
    logger.addHandler(handler)
    try:
        wrong = compare(model, expected, *streams)
    finally:
        logger.removeHandler(handler)
    return wrong + float(not all(any(word in line for line in records) for word in words))


def after_completion(quant_method=None):
    """A weight that is sent again, to a parameter that is no longer the layer's."""
    params = []

    def write(param, weight):
        params.append(param)
        by_data(param, weight)
        if len(params) == len(BOTH):
            by_data(params[0], weight * 3)

    model = Model(write)
    if quant_method is None:
        return compare(model, BOTH | {"first": 9.0}, BOTH)
    model.quant_method = quant_method
    return said(model, "first", "as many elements", expected=BOTH)


def on_a_default_device():
    """Modes of torch are entered around the reload and inside of it, as vLLM and its models do."""

    def write(param, weight):
        with torch.device("cpu"):
            by_data(param, weight)

    with torch.device("cpu"):
        return both(write)


def finalised_by_keyword():
    from vllm.model_executor.model_loader.reload import layerwise

    model = Model(by_data)
    reload(model, BOTH, finalise=False)
    layerwise.finalize_layerwise_reload(model_config=SimpleNamespace(dtype=torch.float32), model=model)
    return float(tiny.values(model) != BOTH or "load_weights" in vars(model))


def in_part():
    """What is not written of a parameter, such as padding, keeps its value."""
    model = Model(lambda param, weight: param.data[:2].copy_(weight[:2]))
    reload(model, BOTH)
    return float([weight.tolist() for weight in model.parameters()] != [[2.0, 2.0, 1.0, 1.0], [3.0, 3.0, 1.0, 1.0]])


def in_another_thread():
    """While this one loads by a parameter's own loader, which is not to be watched."""
    seen = []

    def inside(param, loaded_weight):
        if param.is_meta and not seen:
            seen.append(0)
            thread = threading.Thread(target=lambda: seen.append(both(by_data)))
            thread.start()
            thread.join()
        param.data.copy_(loaded_weight)

    wrong = both(its_own, first=inside)
    return wrong + seen[1]


def tied():
    """A parameter of two layers, which a load sends once."""
    model = Nested(Model(by_data))
    model.head = torch.nn.Module()
    model.head.first = model.part.first
    expected = {"part.first": 2.0, "part.last": 3.0}
    reload(model, {f"part.{name}": value for name, value in BOTH.items()})
    return float(tiny.values(model) != expected or model.head.first is not model.part.first)


def quantised():
    """A layer that is processed after each load."""
    model = Model(by_data, first=of_a_shard)
    model.quant_method = negating()
    return compare(model, {"first": -4.0, "last": 5.0}, BOTH, {"first": 4.0, "last": 5.0})


def in_a_part():
    values = {f"part.{name}": value for name, value in BOTH.items()}
    return compare(Nested(Model(by_data)), values, values)


def refused():
    """What a load refuses is refused, and what is sent after it is written."""
    refusals = []

    def write(param, weight):
        try:
            param.data.copy_(torch.ones(3))
        except RuntimeError as error:
            refusals.append(error)
        param.data.copy_(weight)

    return both(write) + float(len(refusals) != 2)


def own_load_weights():
    """A model whose ``load_weights`` was put into the instance, which is to be there again."""
    model = Model(by_data)
    seen, load = [], model.load_weights
    model.load_weights = own = lambda weights: seen.append(load(weights))
    reload(model, BOTH)
    return float(tiny.values(model) != BOTH or model.load_weights is not own or not seen)


def without_finalisation():
    """A transfer that only records what would be loaded puts the tensors back itself; a load then is any other."""
    from vllm.model_executor.model_loader.reload import layerwise

    model = Model(by_data)
    reload(model, {}, finalise=False)
    for layer in model.modules():
        info = layerwise.get_layerwise_info(layer)
        layerwise._place_kernel_tensors(layer, info)
        info.reset()
    model.load_weights((name, torch.full((4,), value)) for name, value in BOTH.items())
    return float(tiny.values(model) != BOTH or "load_weights" in vars(model))


def compiled_inside():
    """A function that is compiled and called while a model loads, as some that process weights are."""
    twice_of = torch.compile(lambda weight: weight * 2, backend="eager", fullgraph=True)
    return compare(Model(lambda param, weight: param.data.copy_(twice_of(weight))), {"first": 4.0, "last": 6.0}, BOTH)


def in_inference_mode(write):
    with torch.inference_mode():
        return both(write)


def gpt_oss():
    """GPT-OSS's own ``load_weights`` for what is not quantised, on parameters of its names: experts and sinks."""
    from vllm.model_executor.model_loader.reload import layerwise
    from vllm.model_executor.models import gpt_oss as upstream

    sent = {
        "layers.0.mlp.experts.w2_weight": torch.arange(32.0).view(2, 4, 4),
        "layers.0.attn.sinks": torch.arange(4.0),
    }
    experts, sinks = sent
    if hasattr(upstream, "remap_moe_expert_weights"):
        experts = experts.replace("experts.", "experts.routed_experts.")
    functions = {name: f for name, f in vars(upstream.GptOssModel).items() if "load" in name or "expert" in name}
    model = type("GptOssWithoutLayers", (torch.nn.Module,), functions)()
    for name, weight in zip((experts, sinks), sent.values(), strict=True):
        part = model
        for step in name.split(".")[:-1]:
            part._modules.setdefault(step, torch.nn.Module())
            part = part._modules[step]
        part.register_parameter(name.split(".")[-1], torch.nn.Parameter(torch.ones_like(weight), requires_grad=False))
    model.config = SimpleNamespace(num_local_experts=2, intermediate_size=4, num_attention_heads=4)
    model.parallel_config = SimpleNamespace(enable_expert_parallel=False)
    one = mock.Mock(return_value=SimpleNamespace(world_size=1, rank=0, rank_in_group=0))
    single = {f"get_{group}_group": one for group in ("ep", "dp", "pcp")}
    single |= {"get_tensor_model_parallel_world_size": lambda: 1, "get_tensor_model_parallel_rank": lambda: 0}
    single = {name: function for name, function in single.items() if hasattr(upstream, name)}
    layerwise.record_metadata_for_reloading(model)
    with (
        mock.patch.multiple(upstream, is_pp_missing_parameter=lambda *_: False, **single),
        tiny.visible_garbage(),
        torch.no_grad(),
    ):
        layerwise.initialize_layerwise_reload(model)
        model.load_weights(iter(sent.items()))
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
    right = [weight.permute(0, 2, 1) if weight.ndim == 3 else weight for weight in sent.values()]
    return float(not all(map(torch.equal, map(model.get_parameter, (experts, sinks)), right)))


def ways():
    """Yield the name of each way and the function that goes it."""
    for write in (
        by_data,
        by_copy,
        by_keyword,
        by_assignment,
        by_element,
        by_index,
        by_mask,
        by_slices,
        by_bytes,
        by_columns,
        by_broadcast,
        of_another_dtype,
        twice,
        padded,
        on_its_device,
        on_its_device_and_dtype,
        on_its_device_twice,
        one_by_its_own_loader,
        its_own,
    ):
        yield write.__name__.replace("_", " "), partial(both, write)
    yield "past a loader of its own", partial(both, by_data, first=doubled, last=doubled)
    yield "past a loader that must be told of a shard", partial(both, by_element, first=of_a_shard)
    yield "three times", lambda: compare(Model(by_data), dict.fromkeys(BOTH, 4.0), *[dict.fromkeys(BOTH, 4.0)] * 3)
    yield "nothing", lambda: compare(Model(by_data), KEPT, {})
    yield "one of two", lambda: compare(Model(by_data), KEPT | {"first": 2.0}, {"first": 2.0})
    yield "in batches", lambda: compare(Model(by_data), BOTH, [{"first": 2.0}, {"last": 3.0}])
    yield "by a part's own function", in_a_part
    yield "after the layer is complete", after_completion
    yield "after a layer is complete that may have been processed", partial(after_completion, mock.Mock())
    yield "computed on its device", lambda: said(Model(computed_on_its_device), "first", "last", "no data")
    yield "a number alone", lambda: said(Model(lambda param, _: param.fill_(2.0)), "first", "last", "a number")
    yield "arithmetic in place", lambda: said(Model(multiplied), "first", "last", "mul_")
    yield "in part", in_part
    yield "on a default device", on_a_default_device
    yield "finalised by keyword", finalised_by_keyword
    yield "tied", tied
    yield "quantised", quantised
    yield "refused", refused
    yield "a function of the instance", own_load_weights
    yield "without finalisation", without_finalisation
    yield "compiled inside", compiled_inside
    yield "in another thread", in_another_thread
    yield "in inference mode", partial(in_inference_mode, by_copy)
    yield "GPT-OSS", gpt_oss
    yield "deepcopy", lambda: compare(copy.deepcopy(Model(by_data)), BOTH, BOTH)
    yield "pickle", lambda: compare(pickle.loads(pickle.dumps(Model(by_data))), BOTH, BOTH)
