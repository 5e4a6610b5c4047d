"""One gloo rank trains a step of a model that nemo-automodel's own strategy has sharded and checkpointed.

    python kv_sharing_automodel.py FAMILY...

Prints for each family the error of the gradients relative to those of the same model alone, or the exception, and
whether the layers were checkpointed in the reentrant way. Where Automodel has a holder of its own for the shared states
of Gemma 3n, it is put in as Automodel does, before the model is sharded.
"""

import json
import os
import sys

import torch
from torch import distributed
from torch.distributed.fsdp import MixedPrecisionPolicy

import nrl_patches  # noqa: F401 - the patches are what is tested
from nrl_patches.patches._shared import kv_sharing
from nrl_patches.patches._shared.quiet import quiet

TOKENS = torch.arange(1, 49).view(2, 24)


def mesh():
    try:
        from nemo_automodel.components.distributed.config import DistributedSetup, FSDP2Config
    except ImportError:  # up to 0.5.0
        from nemo_automodel.components.distributed import mesh_utils

        sizes = {"dp_size": 1, "dp_replicate_size": None, "tp_size": 1, "pp_size": 1, "cp_size": 1, "ep_size": 1}
        return mesh_utils._create_fsdp2_device_mesh(**sizes, world_size=1, backend="gloo")[0]
    return DistributedSetup.build(FSDP2Config(), world_size=1).mesh_context.device_mesh


def gradients(model, *, use_cache=False):
    model.train()
    model(TOKENS, labels=TOKENS, use_cache=use_cache).loss.backward()
    grads = {n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in model.named_parameters()}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items() if g is not None}


def hold_shared_states(model):
    try:
        from nemo_automodel._transformers import v4_patches
    except ImportError:  # up to 0.3.0
        return 0
    install = getattr(v4_patches, "install_kv_sharing_holder", None)  # from 0.5.0
    return install([model]) if install else 0


def parallelize(model, where):
    from nemo_automodel.components.distributed import parallelizer

    same = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    if hasattr(parallelizer, "DefaultParallelizationStrategy"):
        do = parallelizer.DefaultParallelizationStrategy().parallelize
    else:  # from 0.7.0
        do = parallelizer.ModelParallelizer()._apply
    return do(model, where, mp_policy=same, activation_checkpointing=True)


def outcome(family, where):
    # With a cache every release shares the states.
    expected = gradients(kv_sharing.tiny_model(family), use_cache=True)
    model = kv_sharing.tiny_model(family)
    held = hold_shared_states(model)
    model = parallelize(model, where)
    func = getattr(model.model.layers[0], "_gradient_checkpointing_func", None)
    try:
        found = gradients(model)
    except KeyError as error:
        return {"error": f"KeyError: {error}"}
    off = sum((found[n] - g).pow(2).sum() for n, g in expected.items()) / sum(g.pow(2).sum() for g in expected.values())
    return {"error": off.sqrt().item(), "reentrant": bool(func and func.keywords["use_reentrant"]), "held": held}


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    with quiet():
        found = {family: outcome(family, mesh()) for family in sys.argv[1:]}
    print(json.dumps(found), flush=True)
    os._exit(0)  # Gloo's threads now and then abort an orderly exit: pytorch/pytorch issue 190489.
