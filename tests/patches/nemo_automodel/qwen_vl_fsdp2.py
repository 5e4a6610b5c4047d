"""Two gloo ranks load tiny Qwen-VL checkpoints through ``NeMoAutoModelForImageTextToText.from_pretrained``, with FSDP2.

    python qwen_vl_fsdp2.py

Prints for each family what was lost on the way, as (vision tower, everything else), of how many parameters how many
were sharded, and the class. Of Automodel only the hard-coded CUDA device is replaced; see ``cpu_for_cuda.py``.
"""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.distributed.fsdp import MixedPrecisionPolicy

sys.path.insert(0, str(Path(__file__).parent))
import cpu_for_cuda

from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

RANKS = 2


def placement():
    from nemo_automodel.components.distributed.config import FSDP2Config

    same = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, output_dtype=torch.float32)
    try:
        from nemo_automodel.components.distributed.config import DistributedSetup
    except ImportError:  # up to 0.5.0
        from nemo_automodel.components.distributed import mesh_utils

        sizes = {"dp_size": RANKS, "dp_replicate_size": None, "tp_size": 1, "pp_size": 1, "cp_size": 1, "ep_size": 1}
        mesh, _ = mesh_utils._create_fsdp2_device_mesh(**sizes, world_size=RANKS, backend="gloo")
        return {"distributed_config": FSDP2Config(backend="gloo", mp_policy=same), "device_mesh": mesh}
    return {"distributed_setup": DistributedSetup.build(FSDP2Config(mp_policy=same), world_size=RANKS)}


def load(auto_model, folder, family):
    expected = torch.load(folder / f"{family}.pt")
    model = auto_model.NeMoAutoModelForImageTextToText.from_pretrained(
        str(folder / family),
        torch_dtype=torch.float32,
        use_liger_kernel=False,
        use_sdpa_patching=False,
        attn_implementation="eager",
        **placement(),
    )
    sharded = [hasattr(parameter, "full_tensor") for parameter in model.parameters()]
    found = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in model.state_dict().items()}
    return {
        "lost": qwen_vl_rules.count_lost(found, expected),
        "sharded": sum(sharded),
        "parameters": len(sharded),
        "class": type(model).__name__,
    }


def rank_main(rank, folder, port):
    import nrl_patches

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    auto_model = cpu_for_cuda.install()
    with quiet():
        found = {family: load(auto_model, Path(folder), family) for family in qwen_vl_rules.HEADS}
    found["status"] = {i: str(s.state) for i, s in nrl_patches.status().items() if "qwen_vl" in i}
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
    with quiet(), tempfile.TemporaryDirectory() as made:
        for kind in qwen_vl_rules.HEADS:
            (Path(made) / kind).mkdir()
            torch.save(
                qwen_vl_rules.save_sharded(qwen_vl_rules.tiny_model(kind), Path(made) / kind), Path(made) / f"{kind}.pt"
            )
        multiprocessing.start_processes(rank_main, (made, free_port), nprocs=RANKS, start_method="fork")
