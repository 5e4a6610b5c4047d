"""A CUDA tensor that is sent to another process arrives on whichever GPU has the sender's index there.

Problem: `reduce_tensor` (multiprocessing/reductions.py) hands over the index of the sender's device, and
    `rebuild_cuda_tensor` takes it for one of its own. Under another `CUDA_VISIBLE_DEVICES` it stands for another GPU.
Hit by: weights and data sent between trainers and inference engines that see different GPUs, or the same in another
    order. With two GPUs in the opposite order, the tensor says `cuda:0` for memory that is on the receiver's `cuda:1`,
    and arithmetic with a tensor beside it raises: "Expected all tensors to be on the same device". Where the receiver
    sees fewer GPUs, "CUDA error: invalid device ordinal".
Fix: the index stays, an int, and has the GPU's UUID with it. A receiver with the patch takes the index that this GPU
    has there. An index that the receiver sets itself counts, as before, and so does the sender's where the receiver
    does not see the GPU, whose memory it may reach all the same; it then warns once. Without the patch on the other
    side, each side does what it did: the index is unpickled as a plain int, and needs nothing of this package.
Remove when: torch hands over what identifies a GPU.

NeMo RL and SGLang send the UUID in place of the index, which a receiver without their patch cannot read, and refuse a
GPU that the receiver does not see. Theirs may be on top of this one, whose status is `drifted` then, though it works.

`tests/gpu/cuda_ipc.py` measured it with torch 2.11.0 (CUDA 13.0) on two H100s. Without the patch, tensors sent from
`0,1` to `1,0` have each other's index; sent from `0,1` to `1`, the second one, whose GPU the receiver sees, raises.
With it on both sides each is on its own GPU, and adds to a tensor there; on one side alone, nothing changes. From `0`
to `1`, whose receiver does not see the GPU, values are right with and without it, where peers have access to each
other. The probe runs without a GPU: what the driver would answer is replaced, which is the handle of a storage, the
storage that is opened by it, and the UUIDs.
"""

from __future__ import annotations

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import gpu_tensors

patch = Patch(
    __name__,
    affected="torch>=2.13.0,<=2.13.0",
    upstream=(
        "https://github.com/pytorch/pytorch/issues/149196",
        "https://github.com/pytorch/pytorch/pull/149248",
        "https://github.com/sgl-project/sglang/pull/4565",
    ),
    opt_out="NRL_DISABLE_CUDA_IPC_DEVICE_INDEX_PATCH",
)


# Not reduce_tensor itself, which picklers have in tables of their own.
patch.fix(
    "torch.storage:TypedStorage._share_cuda_",
    guard=lambda share: mismatch(share, parameters="self", attributes="_untyped_storage _share_cuda_"),
)(gpu_tensors.send_uuid)
patch.fix(
    "torch._tensor:_rebuild_from_type",
    guard=lambda rebuild: mismatch(rebuild, parameters="func type args dict", attributes="Tensor"),
)(gpu_tensors.unpickle_uuid)
patch.fix("torch.multiprocessing.reductions:rebuild_cuda_tensor", guard=gpu_tensors.differs)(
    gpu_tensors.receive_on_own_index
)


@patch.probe
def a_tensor_arrives_on_its_gpu() -> Observation:
    """Send a tensor to a process that sees the same two GPUs in another order."""
    import pickle

    import torch
    from torch.multiprocessing import reductions

    from nrl_patches.patches._shared import cpu_for_gpus

    with cpu_for_gpus.sharing(lambda _tensor: 0) as opened:
        with cpu_for_gpus.seeing(("A", "B")):
            rebuild, arguments = reductions.reduce_tensor(torch.ones(4))
            index = pickle.dumps(arguments[6])
        with cpu_for_gpus.seeing(("B", "A")):
            rebuild(*arguments[:6], pickle.loads(index), *arguments[7:])  # noqa: S301 - pickled above
    return Observation(opened != [1], {"sent_from": 0, "received_on": opened[0], "is_there": 1})
