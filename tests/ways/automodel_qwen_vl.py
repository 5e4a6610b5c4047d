"""Every way in which nemo-automodel's Checkpointer loads a Qwen-VL checkpoint; a way returns what part got lost."""

import copy
import pickle
from functools import partial

import torch
from ways import qwen_vl

from nrl_patches.patches._shared import qwen_vl_rules


def load(family, model, *, is_peft=False):
    from nemo_automodel.components.checkpoint import checkpointing

    folder, _ = qwen_vl.checkpoint(family)
    config = checkpointing.CheckpointingConfig(
        enabled=True,
        checkpoint_dir=str(folder),
        model_save_format="safetensors",
        model_cache_dir=str(folder),
        model_repo_id=str(folder),
        save_consolidated=False,
        is_peft=is_peft,
    )
    checkpointing.Checkpointer(config, 0, 0, 0).load_base_model(model, torch.device("cpu"), str(folder), str(folder))
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in model.state_dict().items()}
    _, expected = qwen_vl.checkpoint(family)
    return sum(qwen_vl_rules.count_lost(whole, expected)) / len(expected)


def fresh(family, kind=lambda kind: kind):
    head = qwen_vl.head(family)
    return kind(head)(qwen_vl_rules.tiny_model(family).config)


def sharded(family):
    """Two gloo ranks are in ``qwen_vl_fsdp2.py``; the names are those of one."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh, model = init_device_mesh("cpu", (1,)), fresh(family)
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        return load(family, fully_shard(model, mesh=mesh))
    finally:
        distributed.destroy_process_group()


def adapted(family):
    from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules

    model = fresh(family)
    apply_lora_to_linear_modules(model, PeftConfig(target_modules=["*q_proj", "*v_proj"], dim=2))
    return load(family, model, is_peft=True)


def ways():
    """Yield the name of each way and the function that goes it."""
    for family in qwen_vl_rules.HEADS:
        for name, way in {
            "by the class with the head": lambda family: load(family, fresh(family)),
            "by a subclass": lambda family: load(family, fresh(family, qwen_vl.renamed)),
            "deepcopy": lambda family: load(family, copy.deepcopy(fresh(family))),
            "pickle": lambda family: load(family, pickle.loads(pickle.dumps(fresh(family)))),
            "LoRA": adapted,
            "FSDP2": sharded,
        }.items():
            yield f"{family} {name}", partial(qwen_vl.quietly, partial(way, family))
