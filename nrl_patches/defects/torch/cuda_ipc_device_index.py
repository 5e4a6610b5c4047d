"""A CUDA tensor that is sent to another process arrives on whichever GPU has the sender's index there.

Problem: `reduce_tensor` (multiprocessing/reductions.py) hands over the index of the sender's device, and
    `rebuild_cuda_tensor` takes it for one of its own. Under another `CUDA_VISIBLE_DEVICES` it stands for another GPU.
Hit by: weights and data sent between trainers and inference engines that see different GPUs, or the same in another
    order. With two GPUs in the opposite order, the tensor says `cuda:0` for memory that is on the receiver's `cuda:1`,
    and arithmetic with a tensor beside it raises: "Expected all tensors to be on the same device". Where the receiver
    sees fewer GPUs, "CUDA error: invalid device ordinal".
Advice: give all processes of a node the same `CUDA_VISIBLE_DEVICES`, or send the device's UUID along and set the index
    before rebuilding, as vLLM's weight transfer, NeMo RL, verl, slime and ms-swift do.
Remove when: torch hands over what identifies a GPU.

Measured by `tests/gpu/cuda_ipc.py` with torch 2.11.0 (CUDA 13.0) on two H100s: sent from `0,1` to `1,0`, both tensors
have the other's index; from `0,1` to `1`, the second one, whose GPU the receiver sees, raises. The values are right
where peers have access to each other, also from `0` to `1`, where the receiver does not see the GPU at all: a repair
must not take that away. torch 2.13.0 has the same code. There is no probe, because none of this happens without two
GPUs.
"""

from nrl_patches import Defect

defect = Defect(
    __name__,
    affected="torch>=2.13.0,<=2.13.0",
    upstream=(
        "https://github.com/pytorch/pytorch/issues/149196",
        "https://github.com/pytorch/pytorch/pull/149248",
    ),
    advice="Give processes that share CUDA tensors the same CUDA_VISIBLE_DEVICES, or map indices by the GPUs' UUIDs.",
    relies_on=(
        "torch.multiprocessing.reductions:reduce_tensor",
        "torch.multiprocessing.reductions:rebuild_cuda_tensor",
    ),
    measured=False,
)
