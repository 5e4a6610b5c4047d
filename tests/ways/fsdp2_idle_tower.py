"""Every way to accumulate batches of which some leave a tower alone, against the same model in one piece."""

import copy
import pickle
from functools import partial

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.checkpoint import checkpoint

from nrl_patches.patches._shared import two_ranks
from nrl_patches.patches.torch.fsdp2_idle_tower import sharded, tiny_model

ORDERS = {
    "never": (False, False),
    "first": (True, False, False),
    "last": (False, False, True),
    "in the middle": (False, True, False),
}
"""When there are images."""

HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
"""What trainers choose, and what the defect needs: gradients that are converted before they are reduced."""
FULL = MixedPrecisionPolicy(reduce_dtype=torch.float64)


def batches(images, dtype):
    """Rows that require gradients, without which reentrant checkpointing has none."""
    for place, has_images in enumerate(images):
        rows = ((torch.arange(8.0).view(2, 4) + place) / 8).to(dtype)
        yield (rows.requires_grad_(), rows.detach().flip(0)) if has_images else (rows.requires_grad_(),)


def gradients(model):
    found = {name.replace("_orig_mod.", ""): weight.grad for name, weight in model.named_parameters()}
    found = {name.replace("_checkpoint_wrapped_module.", ""): gradient for name, gradient in found.items()}
    return {n: getattr(g, "full_tensor", g.detach)().float() for n, g in found.items() if g is not None}


def whole(make, images, dtype):
    """The sum of the gradients of each batch, all in one precision but for the sum."""
    total = {}
    for batch in batches(images, dtype):
        model = make().to(dtype)
        model(*batch).pow(2).sum().backward()
        for name, gradient in gradients(model).items():
            total[name] = total.get(name, 0) + gradient
    return total


def far(found, expected):
    """How far gradients are from others; infinitely, if one is there and the other is not."""
    if found.keys() != expected.keys():
        return float("inf")
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    return (torch.stack([(found[name] - expected[name]).norm() for name in expected]).norm() / norm).item()


def in_turn(model, is_last):
    model.set_requires_gradient_sync(is_last)


def keeping_all(model, is_last):
    """What trainers set beside it to save the gathering of each micro-batch, and schedules of pipelines."""
    in_turn(model, is_last)
    model.set_is_last_backward(is_last)
    model.set_reshard_after_backward(is_last)


def filling_in(model, is_last):
    """The tower gets gradients of zeros where it was gathered."""
    in_turn(model, is_last)
    model.set_reduce_scatter_unused_params(True)


def accumulate(
    images, *, make=tiny_model, prepare=lambda model: model, policy=HALF, before=in_turn, mesh=None, **options
):
    """Return how far the gradients of two ranks that have the same batches are from those of the whole model.

    Args:
        images: Which batches have images.
        make: Makes the model.
        prepare: Changes it before it is sharded.
        policy: How precise what is.
        before: Told the model and whether it is the last micro-batch, before each.
        mesh: Makes the mesh; one dimension of both ranks if None.
        options: Of ``fully_shard``.
    """
    dtype = policy.param_dtype or torch.float32
    expected = whole(make, images, dtype)

    def rank():
        model = sharded(prepare(make()), mp_policy=policy, mesh=mesh and mesh(), **options)
        for place, batch in enumerate(batches(images, torch.float32)):
            before(model, place == len(images) - 1)
            model(*batch).pow(2).sum().backward()
        return {"far": far(gradients(model), expected)}

    return told(rank)


def replicas():
    """Two of one shard each."""
    return init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))


def told(rank):
    answer = two_ranks.run(rank)
    if "far" not in answer:
        raise RuntimeError(str(answer))
    return answer["far"]


def compiled(images, **options):
    def prepare(model):
        torch._inductor.config.compile_threads = 1  # Its workers would outlive the rank.
        model.text, model.tower = (torch.compile(module, **options) for module in (model.text, model.tower))
        return model

    return accumulate(images, prepare=prepare)


def checkpointed(images, use_reentrant):
    """Checkpointing as models do it themselves."""

    def make():
        model = tiny_model()
        kind = type(model)

        class Checkpointed(kind):
            def forward(self, *args):
                return checkpoint(super().forward, *args, use_reentrant=use_reentrant)

        model.__class__ = Checkpointed
        return model

    return accumulate(images, make=make)


def wrapped(images, implementation):
    def prepare(model):
        model.text = checkpoint_wrapper(model.text, implementation)
        model.tower = checkpoint_wrapper(model.tower, implementation)
        return model

    return accumulate(images, prepare=prepare)


class Adapted(nn.Module):
    """A frozen layer with an adapter of rank 1."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)

    def forward(self, rows):
        return self.layer(rows) + self.up(self.down(rows))


def with_adapters():
    model = tiny_model()
    model.text, model.tower = Adapted(model.text), Adapted(model.tower)
    return model


def frozen():
    model = tiny_model()
    model.tower.requires_grad_(requires_grad=False)
    return model


class Module(nn.Module):
    """Has the parts of another one: at the top of a module, where pickle finds it."""

    def __init__(self):
        super().__init__()
        self.text, self.tower = tiny_model().text, tiny_model().tower

    def forward(self, rows, images=None):
        return self.text(rows if images is None else rows + self.tower(images))


def in_autocast(images):
    """Weights in float32, whose gradients are reduced in float64."""

    def make():
        model = tiny_model()
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
        return model

    return accumulate(images, make=make, policy=FULL)


def steps(images):
    """Each step of an optimizer begins anew, and the tower that idled in one is used in the next."""
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for part in (images, (True, False), images):
        for batch in batches(part, torch.float32):
            model(*batch).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = {name: weight.detach() for name, weight in model.named_parameters()}

    def rank():
        model = sharded(tiny_model(), mp_policy=FULL)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for part in (images, (True, False), images):
            for place, batch in enumerate(batches(part, torch.float32)):
                in_turn(model, place == len(part) - 1)
                model(*batch).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"far": far({n: w.detach().full_tensor() for n, w in model.named_parameters()}, expected)}

    return told(rank)


def ways():
    """Yield the name of each way and the function that goes it."""
    never = ORDERS["never"]
    for when, images in ORDERS.items():
        yield f"images {when}", partial(accumulate, images)
        yield f"images {when}, gathered throughout", partial(accumulate, images, before=keeping_all)
        yield f"images {when}, not resharded", partial(accumulate, images, reshard_after_forward=False)
    yield "float32", partial(accumulate, never, policy=FULL)
    yield "one batch", partial(accumulate, never[:1])
    yield "several steps", partial(steps, never)
    yield "zeros for what is not used", partial(accumulate, never, before=filling_in)
    yield "a frozen tower", partial(accumulate, never, make=frozen)
    yield "adapters", partial(accumulate, never, make=with_adapters)
    yield "HSDP", partial(accumulate, never, mesh=replicas)
    yield "autocast", partial(in_autocast, never)
    for backend in ("eager", "aot_eager", "inductor"):
        yield f"compile {backend}", partial(compiled, never, backend=backend)
    yield "compile fullgraph", partial(compiled, never, backend="aot_eager", fullgraph=True)
    for use_reentrant in (False, True):
        kind = "reentrant" if use_reentrant else "non-reentrant"
        implementation = CheckpointImpl.REENTRANT if use_reentrant else CheckpointImpl.NO_REENTRANT
        yield f"checkpointing enabled {kind}", partial(checkpointed, never, use_reentrant)
        yield f"checkpointing wrapped {kind}", partial(wrapped, never, implementation)
    yield "deepcopy", partial(accumulate, never, make=Module, prepare=copy.deepcopy)
    yield "pickle", partial(accumulate, never, make=Module, prepare=lambda model: pickle.loads(pickle.dumps(model)))
    yield "subclass", partial(accumulate, never, make=type("Renamed", (Module,), {}))
