"""Losses of accumulated batches under the sharding of transformers' own Trainer, on two GPUs.

    torchrun --nproc-per-node 2 accumulation.py SHARDING [FAMILY...]

SHARDING is ``DDP``, ``FSDP1``, ``FSDP2``, ``ZeRO2`` or ``ZeRO3``. One JSON object per family: how far the gradient of
one update is from that of the rows run alone and weighted by their tokens, unsharded. NRL_PATCHES=0 is without. Under
ZeRO3 each family takes a process of its own: once DeepSpeed is told of it, other models are sharded as they are built.
"""

import json
import os
import sys
import tempfile
from contextlib import nullcontext
from functools import partial

import torch
import transformers
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from ways import accumulation

import nrl_patches
from nrl_patches.patches._shared.quiet import quiet

FAMILIES = ("llama", "gemma3n", "gemma4", "qwen2_5_vl", "classifier", "qwen2_audio", "mixtral", "qwen3_vl_moe")
RANKS = 2


def arguments(sharding):
    if sharding.startswith("FSDP"):
        config = {"fsdp_version": int(sharding[-1]), "use_orig_params": "true"}
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": config}
    if sharding.startswith("ZeRO"):
        sizes = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
        steps = {"gradient_accumulation_steps": "auto", "gradient_clipping": 0.0}
        plain = {"zero_allow_untested_optimizer": True, "zero_optimization": {"stage": int(sharding[-1])}}
        return {"deepspeed": {**sizes, **steps, **plain}}
    return {}


def whole(trainer):
    """The weights, by the names that they have where nothing is wrapped."""
    wrapped = trainer.model_wrapped
    fsdp1 = isinstance(wrapped, FullyShardedDataParallel)
    gathered = nullcontext()
    if trainer.is_deepspeed_enabled:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(trainer.model.parameters()))
    found = {}
    with FullyShardedDataParallel.summon_full_params(wrapped) if fsdp1 else gathered:
        for name, weight in trainer.model.named_parameters():
            plain = name.replace("_fsdp_wrapped_module.", "")
            found[plain] = (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu().clone()
    return found


def update(family, sharding):
    """The gradient of one update, of all rows in accumulated batches on two ranks."""
    AcceleratorState._reset_state(reset_partial_state=False)
    model = accumulation.build(family)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=len(accumulation.ROWS) // RANKS,
            use_cpu=not torch.cuda.is_available(),
            **accumulation.SETTINGS,
            **arguments(sharding),
        )
        trainer = transformers.Trainer(
            model,
            settings,
            data_collator=partial(accumulation.collate, family),
            train_dataset=accumulation.ROWS,
        )
        trainer.train()
        after = whole(trainer)
    assert after.keys() == before.keys()
    return {name: before[name] - after[name] for name in before}


def outcome(family, sharding):
    try:
        with quiet():
            expected = accumulation.reference(family)
            return accumulation.distance(update(family, sharding), expected)
    except Exception as error:  # noqa: BLE001 - any is what there is to say
        return f"{type(error).__name__}: {error}"[:300]


def main(sharding, *families):
    first = os.environ["RANK"] == "0"
    if first:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "device": device}))
    for family in families or FAMILIES:
        far = outcome(family, sharding)
        applied = sorted(s.id for s in nrl_patches.status().values() if s.state == "applied" and "loss" in s.id)
        if first:
            print(json.dumps({family: far, "sharding": sharding, "patches": len(applied)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
