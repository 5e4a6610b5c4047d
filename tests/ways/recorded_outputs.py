"""Every way to train on what transformers records inside of layers, against the same without checkpointing.

The reference of a release is eager, called by keyword, nothing checkpointed, nothing wrapped. A way returns how far the
loss and the gradients are from the reference's: the largest relative error of a tensor.
"""

import copy
import functools
import pickle
from functools import partial

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from ways.kv_sharing import (
    CHECKPOINTING,
    COMPILE,
    TRAINER,
    checkpointed,
    collected,
    distance,
    one_rank,
    plain,
    trainer_steps,
)

from nrl_patches.patches._shared import accumulation, router_losses, two_ranks

TOKENS = torch.randint(3, 16, (2, 12), generator=torch.Generator().manual_seed(1))
# The first label is none: the Trainer divides by the number of labels, the model by that of the predictions.
LABELS = TOKENS.index_fill(1, torch.tensor(0), -100)

COEFFICIENT = 0.5


def build(kind=None, coefficient=COEFFICIENT, *, recorded=True):
    """Return a mixture of experts whose router has a loss, where its logits are recorded."""
    import transformers

    def made():
        experts = {"num_local_experts": 4, "output_router_logits": recorded, "router_aux_loss_coef": coefficient}
        layers = {"num_hidden_layers": 2, "attn_implementation": "eager", "initializer_range": 0.2}
        config = transformers.MixtralConfig(**accumulation.TEXT | layers | experts)
        return (kind or transformers.MixtralForCausalLM)(config)

    return accumulation.seeded(made).train()


def call(model, **more):
    return model(input_ids=TOKENS, labels=LABELS, use_cache=False, **more)


def step(model, loss_of=lambda model: call(model).loss):
    model.zero_grad()
    loss = loss_of(model)
    loss.backward()
    return {"loss": loss.detach(), **collected(model)}


@functools.cache
def reference(loss_of=None):
    return step(build()) if loss_of is None else step(build(), loss_of)


def far(model):
    return distance(step(model), reference())


def other_loss(how, loss_of):
    return distance(step(checkpointed(build(), how), loss_of), reference(loss_of))


def of_attentions(model):
    return sum((a * torch.arange(a.shape[-1])).mean() for a in call(model, output_attentions=True).attentions)


def of_all(model):
    """Of what comes out of the layers too, and twice, the second time by what the first has left."""
    out = call(model, output_attentions=True, output_hidden_states=True)
    seen = [t.square().mean() for t in (*out.router_logits, *out.attentions, *out.hidden_states)]
    sum(seen[::2]).backward(retain_graph=True)
    return sum(seen) + out.loss


def by_position():
    model = checkpointed(build(), "enabled reentrant")
    out = model(TOKENS, torch.ones_like(TOKENS), use_cache=False)
    text = model.loss_function(logits=out.logits, labels=LABELS, vocab_size=model.config.vocab_size)
    loss = text + COEFFICIENT * out.aux_loss
    loss.backward()
    return distance({"loss": loss.detach(), **collected(model)}, reference())


def checkpointed_alone(how):
    """As without the patch, what torch's wrapper cuts off is the router's loss, and no more."""
    found, expected = step(checkpointed(build(), how)), reference()
    if how == "wrapped reentrant":
        expected = step(build(coefficient=0.0)) | {"loss": expected["loss"]}
    return distance(found, expected)


def evaluated():
    model = checkpointed(build(), "enabled reentrant").eval()
    return distance(step(model), reference())


def copied():
    """After a step, when the hooks are there."""
    model = checkpointed(build(), "enabled reentrant")
    step(model)
    return far(copy.deepcopy(model))


def pickled():
    """Before it is checkpointed: newer releases hang a local function on the embeddings then."""
    return far(checkpointed(pickle.loads(pickle.dumps(build())), "enabled reentrant"))


def subclass():
    """Of the model, and of its layers, as FSDP2 makes them."""
    kind = type(build())

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = build(Renamed)
    layer = type(model.model.layers[0])
    for each in model.model.layers:
        each.__class__ = type("RenamedLayer", (layer,), {"forward": layer.forward})
    return far(checkpointed(model, "enabled reentrant"))


def ddp(how, **options):
    """Two steps: what misses a gradient in the first is told in the second."""
    parallel = DistributedDataParallel(checkpointed(build(), how), process_group=one_rank().get_group(), **options)
    return max(far(parallel) for _ in range(2))


def fsdp2(how):
    model = checkpointed(build(), how)
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(fully_shard(model, mesh=one_rank()))


def ranks(wrap):
    """Two gloo ranks with a row each, whose gradients are averaged."""

    def step_of_row(model, row):
        rows = {"input_ids": TOKENS[row : row + 1], "labels": LABELS[row : row + 1]}
        return step(model, lambda model: model(**rows, use_cache=False).loss)

    def rank():
        alone = [step_of_row(build(), row) for row in range(2)]
        here = torch.distributed.get_rank()
        found = step_of_row(wrap(checkpointed(build(), "enabled reentrant")), here)
        expected = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
        return {"far": distance(found, expected | {"loss": alone[here]["loss"]})}

    return two_ranks.run(rank)["far"]


def sharded(model):
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def lora(how):
    """The gradient of B at B = 0 follows from that of the weight: it is dW @ A.T, times the scale, which is 1."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(build(), config).train()
    base = adapted.base_model.model
    if how != "none":
        base.enable_input_require_grads()
    checkpointed(base, how)
    call(adapted).loss.backward()
    weights = {plain(name): weight for name, weight in base.named_parameters()}
    found, expected = {}, {}
    for name, gradient in reference().items():
        b = weights.get(name.replace(".weight", ".lora_B.default.weight"))
        if name.endswith(".weight") and b is not None:
            found[name] = torch.zeros_like(b) if b.grad is None else b.grad
            expected[name] = gradient @ weights[name.replace(".weight", ".lora_A.default.weight")].detach().T
    assert len(expected) == 6
    return distance(found, expected)


def trained(**arguments):
    """One step of the Trainer."""
    (found,) = trainer_steps(build(), {"input_ids": TOKENS, "labels": LABELS}, 1, **arguments)
    return distance(found, {name: gradient for name, gradient in reference().items() if name != "loss"})


def under_autocast(how):
    with torch.autocast("cpu", torch.bfloat16):
        return distance(step(checkpointed(build(), how)), step(build()))


def compiled(backend, how, *, fullgraph):
    """Two steps: hooks are made in the first. In one graph nothing can be recorded, in any release."""
    model = checkpointed(build(recorded=not fullgraph), how)
    expected = step(build(recorded=False)) if fullgraph else reference()
    torch._dynamo.reset()
    forward = torch.compile(model, backend=backend, fullgraph=fullgraph)
    return max(distance(step(model, lambda _: call(forward).loss), expected) for _ in range(2))


def switch(kind=None):
    """Return a model whose layers give the logits of routers in a tuple of their own, and whose loss has theirs."""
    import transformers

    kind = kind or transformers.SwitchTransformersForConditionalGeneration
    return accumulation.seeded(lambda: kind(transformers.SwitchTransformersConfig(**router_losses.SWITCH))).train()


def switch_loss(model):
    return model(input_ids=TOKENS, labels=LABELS).loss


@functools.cache
def switch_reference():
    return step(switch(), switch_loss)


def switch_far(model, how="enabled reentrant"):
    return distance(step(checkpointed(model, how), switch_loss), switch_reference())


def switch_subclass():
    kind = type(switch())

    class Renamed(kind):
        __module__ = kind.__module__

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    return switch_far(switch(Renamed))


def switch_fsdp2():
    model = checkpointed(switch(), "enabled reentrant")
    for stack in (model.encoder, model.decoder):
        for layer in stack.block:
            fully_shard(layer, mesh=one_rank())
    return distance(step(fully_shard(model, mesh=one_rank()), switch_loss), switch_reference())


def switch_trained():
    (found,) = trainer_steps(switch(), {"input_ids": TOKENS, "labels": LABELS}, 1, gradient_checkpointing=True)
    return distance(found, {name: gradient for name, gradient in switch_reference().items() if name != "loss"})


def switch_compiled():
    model = checkpointed(switch(), "enabled reentrant")
    torch._dynamo.reset()
    forward = torch.compile(model, backend="eager")
    return distance(step(model, lambda _: switch_loss(forward)), switch_reference())


def switch_alone():
    """A layer, called by hand, with all but the router's logits by position."""
    block = checkpointed(switch(), "enabled reentrant").encoder.block[1]
    states = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gate, found = block.layer[-1].mlp.router.classifier.weight, []
    for training in (True, False):
        block.train(training).zero_grad()
        *_, (logits, _) = block(states, torch.zeros(2, 1, 5, 5), torch.zeros(2, 2, 5, 5), output_router_logits=True)
        logits.square().sum().backward()
        found.append({"gate": gate.grad})
    return distance(*found)


def switch_ways():
    """Yield the name of each way with Switch Transformers and the function that goes it."""
    for how in ("none", "enabled", "enabled non-reentrant", "enabled reentrant"):
        yield f"Switch Transformers, checkpointing {how}", lambda how=how: switch_far(switch(), how)
    yield "Switch Transformers, deepcopy", lambda: switch_far(copy.deepcopy(switch()))
    yield "Switch Transformers, pickle", lambda: switch_far(pickle.loads(pickle.dumps(switch())))
    yield "Switch Transformers, subclass", switch_subclass
    yield "Switch Transformers, FSDP2", switch_fsdp2
    yield "Switch Transformers, Trainer", switch_trained
    yield "Switch Transformers, compile eager", switch_compiled
    yield "Switch Transformers, a layer alone", switch_alone


def ways(*, compiles="all", models="mixtral"):
    """Yield the name of each way and the function that goes it.

    Args:
        compiles: A key of ``COMPILE``.
        models: ``mixtral`` or ``switch``, which up to 4.57.6 has a repair of its own.
    """
    if models == "switch":
        yield from switch_ways()
        return
    # They are forks, and want no process group before theirs.
    yield "DDP, two ranks", partial(ranks, DistributedDataParallel)
    yield "FSDP2, two ranks", partial(ranks, sharded)
    yield "called by position", by_position
    yield "evaluation", evaluated
    yield "deepcopy", copied
    yield "pickle", pickled
    yield "subclass", subclass
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, **settings)
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", partial(checkpointed_alone, how)
    for how in CHECKPOINTING[:3]:
        yield f"loss of attentions, checkpointing {how}", partial(other_loss, how, of_attentions)
        yield f"loss of all, checkpointing {how}", partial(other_loss, how, of_all)
        yield f"LoRA, checkpointing {how}", partial(lora, how)
        yield f"autocast, checkpointing {how}", partial(under_autocast, how)
        yield f"FSDP2, checkpointing {how}", partial(fsdp2, how)
        yield f"DDP, checkpointing {how}", partial(ddp, how)
        yield f"DDP find_unused_parameters, checkpointing {how}", partial(ddp, how, find_unused_parameters=True)
    for backend, full, how in COMPILE[compiles]:
        yield f"compile {backend}{full}, checkpointing {how}", partial(compiled, backend, how, fullgraph=bool(full))
