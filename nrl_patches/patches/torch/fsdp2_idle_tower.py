"""FSDP2 raises AttributeError on a module that no forward has reached, while gradients are accumulated.

Problem: `FSDPParam.to_accumulated_grad_if_needed` (distributed/fsdp/_fully_shard/_fsdp_param.py) reads
    `_unsharded_param`, which the first all-gather makes. The end of a backward goes through all sharded modules, those
    that no forward has reached among them.
Hit by: models with a tower that a batch of text leaves alone, such as the vision tower of Qwen-VL, sharded by
    `fully_shard` with a `reduce_dtype` other than that of the computation, from the first micro-batch without images
    under `set_requires_gradient_sync(False)`: "'FSDPParam' object has no attribute '_unsharded_param'". Once a batch
    has had images, the same batch of text passes.
Fix: a parameter that was never gathered has no gradient to convert, and is passed over, as in upstream's repair and as
    the method does where there is no gradient yet.
Remove when: every supported torch guards that access.

Automodel (`patch_fsdp_accumulated_grad_guard`) and verl carry the same early return; with theirs on top of this one
nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch

patch = Patch(
    __name__,
    affected="torch>=2.13.0,<=2.13.0",
    upstream=(
        "https://github.com/pytorch/pytorch/pull/194058",
        "https://github.com/verl-project/verl/pull/7475",
        "https://github.com/NVIDIA-NeMo/Automodel/pull/2744",
    ),
    opt_out="NRL_DISABLE_FSDP2_IDLE_TOWER_PATCH",
)


@patch.fix(
    "torch.distributed.fsdp._fully_shard._fsdp_param:FSDPParam.to_accumulated_grad_if_needed",
    guard=lambda method: mismatch(
        method, parameters="self", attributes="_unsharded_param unsharded_accumulated_grad reduce_dtype"
    ),
)
def pass_over_what_was_never_gathered(convert: Callable[[Any], None]) -> Callable[[Any], None]:
    """Build a method that converts the gradients of parameters that were gathered.

    Args:
        convert: torch's ``to_accumulated_grad_if_needed``.
    """

    def to_accumulated_grad_if_needed(self: Any) -> None:
        if hasattr(self, "_unsharded_param"):
            convert(self)

    return to_accumulated_grad_if_needed


def tiny_model() -> Any:
    """Return a text model with a tower that only some batches use."""
    import torch

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.text, self.tower = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, rows: Any, images: Any = None) -> Any:
            return self.text(rows if images is None else rows + self.tower(images))

    torch.manual_seed(0)
    return Model()


def sharded(model: Any, **options: Any) -> Any:
    """Return a model after FSDP2 has sharded its text layer, its tower and what is left, each by itself.

    Args:
        model: Has the two.
        options: Of ``fully_shard``.
    """
    from torch.distributed.fsdp import fully_shard

    for module in (model.text, model.tower, model):
        fully_shard(module, **options)
    return model


@patch.probe
def an_idle_tower_ends_the_backward() -> Observation:
    """Accumulate two batches of text on one gloo rank, whose backward ends as that of many does."""
    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = sharded(tiny_model(), mp_policy=policy, mesh=init_device_mesh("cpu", (1,)))
        for is_last in (False, True):
            model.set_requires_gradient_sync(is_last)
            model(torch.ones(2, 4)).sum().backward()
        return Observation(False, {"bias_gradient": model.text.bias.grad.full_tensor().mean().item()})
    except AttributeError as error:
        if "_unsharded_param" not in str(error):
            raise
        return Observation(True, {"AttributeError": str(error)})
    finally:
        distributed.destroy_process_group()
