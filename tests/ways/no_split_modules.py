"""Every reader of the layers that are to stay whole; a way returns 0 where all is well."""

import copy
import functools
import pickle
from functools import partial

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from nrl_patches.patches.transformers.absent_no_split_modules import tiny_models

TOKENS = torch.arange(1, 13).view(1, -1)


def names_absent(model):
    there = {type(module).__name__ for module in model.modules()}
    return len(set(model._no_split_modules) - there)


@functools.cache
def one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


def fsdp1(model, **options):
    """What would be wrapped is the layers; FSDP1 itself needs a device."""
    import accelerate

    plugin = accelerate.FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap", **options)
    plugin.set_auto_wrap_policy(model)
    assert plugin.auto_wrap_policy.func is transformer_auto_wrap_policy
    return {type(model.model.layers[0])} != plugin.auto_wrap_policy.keywords["transformer_layer_cls"]


def fsdp2(index):
    import accelerate
    from accelerate.utils import fsdp_utils

    model, plain = tiny_models()[index], tiny_models()[index]
    plain.load_state_dict(model.state_dict())
    plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    policy = fsdp_utils.fsdp2_prepare_auto_wrap_policy(plugin, model)
    chosen = [module for module in model.modules() if policy(module)]
    assert chosen == list(model.model.layers)
    for module in chosen:
        fully_shard(module, mesh=one_rank())
    fully_shard(model, mesh=one_rank())
    with torch.no_grad():
        found, expected = model(TOKENS).logits, plain(TOKENS).logits
    return ((found - expected).norm() / expected.norm()).item()


def a_wrong_name_of_the_user(model):
    try:
        fsdp1(model, transformer_cls_names_to_wrap=["NotThere"])
    except ValueError as error:
        return "NotThere" not in str(error)
    return True


def placed(model):
    """What `device_map` keeps whole is the same with all names of the family."""
    from accelerate import infer_auto_device_map

    def place(names):
        return infer_auto_device_map(model, max_memory={"cpu": 2**14, "disk": 2**30}, no_split_module_classes=names)

    return place(list(model._no_split_modules)) != place([*type(model)._no_split_modules])


def subclass(index):
    kind = type(tiny_models()[index])

    class Renamed(kind):
        __module__ = kind.__module__

    Renamed._no_split_modules = [*kind._no_split_modules, "NotThere"]
    return names_absent(Renamed(tiny_models()[index].config))


def ways():
    """Yield the name of each way and the function that goes it."""
    for index, model in enumerate(tiny_models()):
        name = type(model).__name__
        yield f"{name} names", partial(names_absent, model)
        yield f"{name} FSDP1", partial(fsdp1, model)
        yield f"{name} FSDP2", partial(fsdp2, index)
        yield f"{name} a wrong name of the user", partial(a_wrong_name_of_the_user, model)
        yield f"{name} device_map", partial(placed, model)
        yield f"{name} deepcopy", partial(lambda model: fsdp1(copy.deepcopy(model)), model)
        yield f"{name} pickle", partial(lambda model: fsdp1(pickle.loads(pickle.dumps(model))), model)
        yield f"{name} subclass", partial(subclass, index)
        yield f"{name} LoRA", partial(adapted, model)


def adapted(model):
    import peft

    return fsdp1(peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).base_model.model)
