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


def adapted(model):
    import peft

    return fsdp1(peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).base_model.model)


def ways(*, families="Gemma3 Gemma4"):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Those of the release.
    """
    for index, family in enumerate(families.split()):

        def of(way, index=index):
            return way(tiny_models()[index])

        yield f"{family} names", partial(of, names_absent)
        yield f"{family} FSDP1", partial(of, fsdp1)
        yield f"{family} FSDP2", partial(fsdp2, index)
        yield f"{family} a wrong name of the user", partial(of, a_wrong_name_of_the_user)
        yield f"{family} device_map", partial(of, placed)
        yield f"{family} deepcopy", partial(of, lambda model: fsdp1(copy.deepcopy(model)))
        yield f"{family} pickle", partial(of, lambda model: fsdp1(pickle.loads(pickle.dumps(model))))
        yield f"{family} subclass", partial(subclass, index)
        yield f"{family} LoRA", partial(of, adapted)
