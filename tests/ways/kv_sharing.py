"""Every way to train a model with KV-shared layers, each against the same model used in the plainest way.

The plainest way, and so the reference of a release: eager, called by keyword, nothing checkpointed, nothing wrapped. A
way returns how far the loss and the gradients are from the reference's: the largest relative error of a tensor.
"""

import copy
import functools
import pickle
import tempfile
import zlib
from functools import partial

import torch
from torch import distributed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from nrl_patches.patches._shared.kv_sharing import tiny_model

LAYERS = ("sliding_attention", "full_attention", "sliding_attention", "full_attention")
"""A donor and a reader of each kind."""

COMPILED = {"gemma4": ("sliding_attention", "full_attention", "full_attention"), "gemma3n": LAYERS[1::2]}
"""One donor and one reader, because each layer takes dynamo a second; Gemma 4 needs a layer of each kind."""

TOKENS = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(1))
# The first label is none: the Trainer divides by the number of labels, the model by that of the predictions.
LABELS = TOKENS.index_fill(1, torch.tensor(0), -100)

RATE = 0.01

CHECKPOINTING = ("none", "enabled non-reentrant", "enabled reentrant", "wrapped non-reentrant", "wrapped reentrant")
"""By the model's own method, or by torch's wrapper around each layer."""


def build(family, layers=LAYERS, kind=None):
    """Return a model whose weights depend on nothing but their names: releases differ in which there are."""
    changes = {
        "num_hidden_layers": len(layers),
        "layer_types": list(layers),
        "num_kv_shared_layers": len(layers) // 2,
    }
    if family == "gemma3n":
        changes["activation_sparsity_pattern"] = [0.0] * len(layers)
    model = tiny_model(family, **changes)
    if kind is not None:
        model = kind(model.config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 + (1.0 if weight.dim() == 1 else 0.0))
    return model.train()


def checkpointed(model, how):
    """Switch on one of ``CHECKPOINTING``, or what is the default of the model's own method."""
    how, _, which = how.partition(" ")
    if how == "enabled":
        given = {"gradient_checkpointing_kwargs": {"use_reentrant": which == "reentrant"}} if which else {}
        model.gradient_checkpointing_enable(**given)
    elif how == "wrapped":
        kind = CheckpointImpl.REENTRANT if which == "reentrant" else CheckpointImpl.NO_REENTRANT
        layers = model.base_model.layers
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer, checkpoint_impl=kind)
    return model


def call(model):
    return model(input_ids=TOKENS, labels=LABELS, use_cache=False)


def plain(name):
    for prefix in ("_checkpoint_wrapped_module.", "module."):
        name = name.replace(prefix, "")
    return name


def gradients(model, forward=call):
    """The loss and the gradients of one step, by the names of the plain model."""
    model.zero_grad()
    loss = forward(model).loss
    loss.backward()
    return {"loss": loss.detach(), **collected(model)}


def collected(model):
    grads = {plain(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).detach().clone() for n, g in grads.items()}


def distance(found, expected):
    """The largest relative error of a tensor; one that is missing counts as zeros."""
    floor = 1e-4 * max(tensor.norm().item() for tensor in expected.values())
    far = 0.0
    for name in found.keys() | expected.keys():
        have, want = found.get(name), expected.get(name)
        gap = want if have is None else have if want is None else have - want
        far = max(far, gap.norm().item() / max(floor, 0.0 if want is None else want.norm().item()))
    return far


@functools.cache
def reference(family, layers=LAYERS):
    return gradients(build(family, layers))


def far(family, model, forward=call):
    return distance(gradients(model, forward), reference(family))


@functools.cache
def one_rank():
    """Made once: gloo's threads now and then hang when a group goes whose reducer has raised."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


def by_position(family):
    """Labels stand behind parameters whose number differs by release, so the loss is made here."""
    model = build(family)
    logits = model(TOKENS, torch.ones_like(TOKENS), use_cache=False).logits
    loss = model.loss_function(logits=logits, labels=LABELS, vocab_size=model.config.vocab_size)
    loss.backward()
    return distance({"loss": loss.detach(), **collected(model)}, reference(family))


def subclass(family):
    kind = type(build(family))

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    return far(family, build(family, kind=Renamed))


def offloaded(family):
    import accelerate

    model = build(family).eval()
    with torch.no_grad():
        expected = call(model).logits
        # What is tied is loaded from the one place where it is, as after `from_pretrained`.
        found = call(accelerate.cpu_offload(model, torch.device("cpu"), state_dict=model.state_dict())).logits
    return distance({"logits": found}, {"logits": expected})


def ddp(family, checkpointing, **options):
    """Two steps: what misses a gradient in the first is told in the second."""
    model = checkpointed(build(family), checkpointing)
    one_rank()
    parallel = DistributedDataParallel(model, **options)
    return max(far(family, parallel) for _ in range(2))


def fsdp2(family, checkpointing):
    model = checkpointed(build(family), checkpointing)
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(family, fully_shard(model, mesh=one_rank()))


def lora(family, checkpointing):
    """The gradient of B at B = 0 follows from that of the weight: it is dW @ A.T, times the scale, which is 1."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(build(family), config)
    base = adapted.base_model.model
    if checkpointing != "none":
        base.enable_input_require_grads()
    checkpointed(base, checkpointing)
    adapted.train()
    call(adapted).loss.backward()
    weights = {plain(name): weight for name, weight in base.named_parameters()}
    found, expected = {}, {}
    for name, gradient in reference(family).items():
        if ".altup." in name or not name.endswith(".weight"):  # AltUp reads its coefficients past their module.
            continue
        a = weights.get(name.replace(".weight", ".lora_A.default.weight"))
        b = weights.get(name.replace(".weight", ".lora_B.default.weight"))
        if a is not None:
            found[name] = torch.zeros_like(b) if b.grad is None else b.grad
            expected[name] = gradient @ a.detach().T
    assert len(expected) > len(LAYERS)
    return distance(found, expected)


def trained(family, **arguments):
    """Two steps of the Trainer, against the same by hand."""
    steps = trainer_steps(build(family), {"input_ids": TOKENS, "labels": LABELS}, 2, **arguments)
    return max(distance(found, expected) for found, expected in zip(steps, by_hand(family), strict=True))


def trainer_steps(model, columns, number, seen=None, **arguments):
    """Return the gradients of some steps of the Trainer, each of all rows.

    Args:
        model: The model.
        columns: The rows, by the name of the argument.
        number: How many steps.
        seen: What the gradients of the model are, by name; ``collected`` if None.
        arguments: Those of ``TrainingArguments``.
    """
    import transformers

    rows = len(columns["input_ids"])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    steps = []
    optimizer.register_step_pre_hook(lambda *_: steps.append((seen or collected)(model)))
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder,
            max_steps=number,
            per_device_train_batch_size=rows,
            max_grad_norm=0,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **arguments,
        )
        examples = [{name: column[row] for name, column in columns.items()} for row in range(rows)]
        trainer = transformers.Trainer(
            model=model, args=settings, train_dataset=examples, optimizers=(optimizer, schedule)
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
    return steps


@functools.cache
def by_hand(family):
    model, steps = build(family), []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(2):
        gradients(model)
        steps.append(collected(model))
        optimizer.step()
    return steps


def under_autocast(family, checkpointing):
    """Against the same without checkpointing; that itself, which is coarse, against full precision."""
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(build(family))
        found = gradients(checkpointed(build(family), checkpointing))
    flat, exact = (torch.cat([g[n].flatten() for n in sorted(g)]) for g in (expected, reference(family)))
    coarse = ((flat - exact).norm() / exact.norm()).item()
    assert coarse < 0.1, coarse
    return distance(found, expected)


def compiled(family, backend, checkpointing, *, fullgraph):
    model = checkpointed(build(family, COMPILED[family]), checkpointing)
    torch._dynamo.reset()
    forward = torch.compile(model, backend=backend, fullgraph=fullgraph)
    return distance(gradients(model, lambda _: call(forward)), reference(family, COMPILED[family]))


def compiled_inference(family, *, use_cache):
    model = build(family, COMPILED[family]).eval()
    torch._dynamo.reset()
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        found, expected = forward(TOKENS, use_cache=use_cache).logits, model(TOKENS, use_cache=True).logits
    return distance({"logits": found}, {"logits": expected})


COMPILE = {
    "nothing": (),
    "fullgraph": (("aot_eager", " fullgraph", "none"), ("aot_eager", " fullgraph", "enabled non-reentrant")),
    "some": (("aot_eager", "", "enabled non-reentrant"), ("aot_eager", " fullgraph", "none")),
    "all": (
        ("eager", "", "enabled reentrant"),
        ("eager", " fullgraph", "none"),
        ("aot_eager", "", "enabled reentrant"),
        ("aot_eager", "", "enabled non-reentrant"),
        ("aot_eager", " fullgraph", "none"),
        ("aot_eager", " fullgraph", "enabled non-reentrant"),
        ("inductor", "", "none"),
    ),
}
"""What is compiled: backend, fullgraph or not, checkpointing. Each takes some seconds."""

TRAINER = {
    "no checkpointing": {},
    "checkpointing by default": {"gradient_checkpointing": True},
    "checkpointing non-reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "checkpointing reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
}


def ways(family, *, compiles="all"):
    """Yield the name of each way and the function that goes it.

    Args:
        family: ``gemma4`` or ``gemma3n``.
        compiles: A key of ``COMPILE``.
    """
    yield "called by position", partial(by_position, family)
    yield "deepcopy", lambda: far(family, copy.deepcopy(build(family)))
    yield "pickle", lambda: far(family, pickle.loads(pickle.dumps(build(family))))
    yield "subclass", partial(subclass, family)
    yield "accelerate.cpu_offload", partial(offloaded, family)
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, family, **settings)
    yield "checkpointing enabled by default", lambda: far(family, checkpointed(build(family), "enabled"))
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", lambda how=how: far(family, checkpointed(build(family), how))
        yield f"LoRA, checkpointing {how}", partial(lora, family, how)
        yield f"autocast, checkpointing {how}", partial(under_autocast, family, how)
        yield f"FSDP2, checkpointing {how}", partial(fsdp2, family, how)
        yield f"DDP, checkpointing {how}", partial(ddp, family, how)
        yield (
            f"DDP find_unused_parameters, checkpointing {how}",
            partial(ddp, family, how, find_unused_parameters=True),
        )
    for backend, full, how in COMPILE[compiles]:
        yield (
            f"compile {backend}{full}, checkpointing {how}",
            partial(compiled, family, backend, how, fullgraph=bool(full)),
        )
    for use_cache in (False, True) if COMPILE[compiles] else ():
        yield (
            f"compile aot_eager fullgraph, inference, use_cache={use_cache}",
            partial(compiled_inference, family, use_cache=use_cache),
        )
