"""Two gloo ranks train a model whose decoder layers FSDP2 has sharded, and the same model under DDP.

    python kv_sharing_fsdp2.py FAMILY

Prints for each way to checkpoint the largest difference between the sharded gradients and those of the same model in
one piece, relative to the largest gradient, or the exception that the sharded model raised. Under DDP there are three
steps, the second of which raises where a parameter gets no gradient.
"""

import json
import os
import socket
import sys

import torch
from torch import distributed, multiprocessing
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import nrl_patches  # noqa: F401 - the patches are what is tested
from nrl_patches.patches._shared import kv_sharing

RANKS = 2
WAYS = ("off", "enabled", "reentrant", "wrapped", "ddp", "ddp enabled", "ddp reentrant")
TOKENS = torch.arange(1, 49).view(2, 24)


def gradients(model):
    model.train()
    model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    grads = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items() if g is not None}


def enable(model, *, reentrant):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def shard(model, checkpointing):
    mesh = init_device_mesh("cpu", (RANKS,))
    if checkpointing in {"enabled", "reentrant"}:
        enable(model, reentrant=checkpointing == "reentrant")
    for index, layer in enumerate(model.model.layers):
        module = checkpoint_wrapper(layer) if checkpointing == "wrapped" else layer
        model.model.layers[index] = fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def distributed_data_parallel(model, checkpointing):
    if checkpointing != "ddp":
        enable(model, reentrant=checkpointing == "ddp reentrant")
    parallel = DistributedDataParallel(model)
    for _ in range(3):
        model.zero_grad()
        found = gradients(parallel)
    return {name.removeprefix("module."): grad for name, grad in found.items()}


def worst(family, checkpointing):
    expected = gradients(kv_sharing.tiny_model(family))
    model = kv_sharing.tiny_model(family)
    try:
        if checkpointing.startswith("ddp"):
            found = distributed_data_parallel(model, checkpointing)
        else:
            found = gradients(shard(model, checkpointing))
    except (KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"[:200]
    assert found.keys() == expected.keys()
    scale = max(g.abs().max().item() for g in expected.values())
    return max((found[n] - expected[n]).abs().max().item() for n in expected) / scale


def rank_main(rank, family, port):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    found = {checkpointing: worst(family, checkpointing) for checkpointing in WAYS}
    gathered = [None] * RANKS
    distributed.all_gather_object(gathered, found)
    distributed.destroy_process_group()
    if rank == 0:
        print(json.dumps(gathered), flush=True)
    os._exit(0)  # Gloo's threads now and then abort an orderly exit: pytorch/pytorch issue 190489.


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    # Forked, so that all is imported once, and with one hash seed: releases up to 5.15 register rotary buffers in the
    # order of a set, and DDP copies them by their order from rank 0.
    multiprocessing.start_processes(rank_main, (sys.argv[1], free_port), nprocs=RANKS, start_method="fork")
