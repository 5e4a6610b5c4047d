"""One rank of torchrun trains one step of a model with KV-shared layers, sharded by FSDP2.

    torchrun --nproc-per-node 2 torchrun_train.py FAMILY [import]

Rank 0 prints what each rank saw: its probe, the status, and how far its gradients and the parameters after the step are
from those of the same model in one piece. Without ``import`` the program itself never names nrl_patches before.
"""

import json
import os
import sys

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

TOKENS = torch.arange(1, 49).view(2, 24)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train_one_step(model):
    """Return gradients, and parameters after the step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    return gradients, {name: whole(p).detach() for name, p in model.named_parameters()}


def shard(model):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gap(found, expected):
    assert found.keys() == expected.keys()
    scale = max(tensor.abs().max().item() for tensor in expected.values())
    return max((found[name] - expected[name]).abs().max().item() for name in expected) / scale


def main():
    family = sys.argv[1]
    if sys.argv[2:] == ["import"]:
        import nrl_patches
    import transformers  # noqa: F401 - what a training program imports

    package = sys.modules.get("nrl_patches")
    before = package.activated_by if package else None
    import nrl_patches
    from nrl_patches.patches._shared import kv_sharing

    patch = nrl_patches._activation.registry.patches[f"transformers.{family}_kv_sharing_fsdp2"]
    present = patch.observe().present  # In a process group of its own, so before ours.
    distributed.init_process_group("gloo")
    report = {"activated_by": before, "present": present, "state": str(nrl_patches.status()[patch.id].state)}
    expected = train_one_step(kv_sharing.tiny_model(family))
    try:
        found = train_one_step(shard(kv_sharing.tiny_model(family)))
        report |= {"gradients": gap(found[0], expected[0]), "parameters": gap(found[1], expected[1])}
    except KeyError as error:
        report["error"] = f"KeyError: {error}"
    gathered = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, report)
    if distributed.get_rank() == 0:
        print(json.dumps(gathered), flush=True)
    distributed.destroy_process_group()
    os._exit(0)  # Gloo's threads now and then abort an orderly exit: pytorch/pytorch issue 190489.


if __name__ == "__main__":
    main()
