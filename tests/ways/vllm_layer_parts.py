"""Which parts of a layer a reload may be sent; a way returns 0 if what lacks is named, and nothing where nothing lacks.

Uninitialised memory is NaN here.
"""

import copy
import pickle
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch

from nrl_patches.patches._shared import layer_parts
from nrl_patches.patches._shared import layerwise_reload as tiny

NEEDED = "without "


def reload(layer, *parts, times=1):
    with tiny.visible_garbage():
        said = [line for _ in range(times) for line in layer_parts.reload(layer, *parts)]
    return [line for line in said if NEEDED in line]


def qkv(*parts, absent="", times=1, layer=None):
    """Return 1.0 unless what was sent is loaded, and one warning names what is absent, or none if nothing is."""
    layer = layer or layer_parts.tiny_layer()
    said = reload(layer, *parts, times=times)
    seen = layer.weight.tolist()
    loaded = all(seen[layer_parts.PARTS.index(part)] == -2.0 for part in parts)
    return float(not loaded or len(said) != bool(absent) or not all(f"{NEEDED}{absent}," in line for line in said))


def unquantised():
    layer = layer_parts.tiny_layer()
    layer.quant_method = type("UnquantizedLinearMethod", (), {})()
    return float(reload(layer, "q") != [])


def fused():
    """What a checkpoint has fused is sent whole, without a part's name, and may be shorter than a padded parameter."""
    layer = layer_parts.tiny_layer()

    def load(param, loaded_weight, loaded_shard_id=None):
        assert loaded_shard_id is None
        param.data[:2].copy_(loaded_weight.expand(2))

    layer.weight.weight_loader = load
    return float(reload(layer, None) != [])


class Experts(torch.nn.Module):
    """Two experts, of which a rank holds the first ``local``, as vLLM's class maps them."""

    def __init__(self, local=2):
        super().__init__()
        self.local_num_experts = local
        self.weight = torch.nn.Parameter(torch.ones(local, 2), requires_grad=False)
        self.weight.weight_loader = self.load
        self.quant_method = SimpleNamespace()

    def _map_global_expert_id_to_local_expert_id(self, expert_id):
        return expert_id if expert_id < self.local_num_experts else -1

    def load(self, param, loaded_weight, weight_name, shard_id, expert_id):
        del weight_name
        if expert_id < self.local_num_experts:
            param.data[expert_id, ("w1", "w3").index(shard_id)].copy_(loaded_weight)


def experts(*pieces, local=2):
    from vllm.model_executor.model_loader.reload import layerwise

    model = torch.nn.Module()
    model.experts = layer = Experts(local)
    layerwise.record_metadata_for_reloading(model)
    layerwise.initialize_layerwise_reload(model)
    for shard, expert in pieces:
        layer.weight.weight_loader(layer.weight, torch.tensor(2.0), "w13", shard, expert)
    said = []
    with layer_parts.listening(said):
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
    return [line for line in said if NEEDED in line]


def some_experts():
    said = experts(("w1", 0), ("w3", 0), ("w1", 1))
    words = ("experts: expected", f"3 parts of its experts of weight: {NEEDED}1 others")
    return float(len(said) != 1 or not all(word in said[0] for word in words))


def experts_of_another_class():
    """A layer whose loader knows experts, and that has not vLLM's way of mapping them."""
    with mock.patch.object(Experts, "_map_global_expert_id_to_local_expert_id", None):
        return float(experts(("w1", 0)) != [])


def all_local_experts():
    """The other ranks' experts come by, and are not counted."""
    return float(experts(("w1", 0), ("w3", 0), ("w1", 1), ("w3", 1), local=1) != [])


def merged(*parts, absent=()):
    """Gates and ups."""
    from vllm.model_executor.layers import linear

    layer = layer_parts.tiny_layer()
    layer.__class__ = linear.MergedColumnParallelLinear
    layer.output_sizes = [1, 1, 1]

    def load(param, loaded_weight, loaded_shard_id=None):
        shards = loaded_shard_id if isinstance(loaded_shard_id, tuple) else (loaded_shard_id,)
        for shard in shards:
            param.data[shard if shard in range(3) else 0].copy_(loaded_weight)

    layer.weight.weight_loader = load
    said = reload(layer, *parts)
    return float(len(said) != bool(absent) or not all(f"{NEEDED}{', '.join(absent)}," in line for line in said))


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "queries and keys", partial(qkv, "q", "k", absent="v")
    yield "values", partial(qkv, "v", absent="k, q")
    yield "three times", partial(qkv, "q", "k", absent="v", times=3)
    yield "all", partial(qkv, "v", "q", "k")
    yield "nothing", qkv
    yield "without quantisation", unquantised
    yield "fused in the checkpoint", fused
    yield "gates", partial(merged, 0, absent=("1", "2"))
    yield "gates and ups of three, two at once", partial(merged, (0, 1), absent=("2",))
    yield "all of a merged layer", partial(merged, (0, 1), 2)
    yield "some experts", some_experts
    yield "all experts of this rank", all_local_experts
    yield "experts without a gate", lambda: float(experts(("w1", 0), ("w1", 1)) != [])
    yield "experts of another class", experts_of_another_class
    yield "identifiers of another class", partial(merged, "gate", 7)
    yield "deepcopy", lambda: qkv("q", absent="k, v", layer=copied(copy.deepcopy))
    yield "pickle", lambda: qkv("q", absent="k, v", layer=copied(lambda layer: pickle.loads(pickle.dumps(layer))))


def copied(copier):
    """Copy the parameter; what makes up the rest of a probe's layer are local functions."""
    layer = layer_parts.tiny_layer()
    loader = layer.weight.weight_loader
    layer.weight = copier(torch.nn.Parameter(layer.weight.data, requires_grad=False))
    layer.weight.weight_loader = loader
    return layer
