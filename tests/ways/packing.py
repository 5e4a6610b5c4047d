"""Every way to give a model packed rows, each against the same sequences given one by one.

The reference of a release is eager, unpacked, without a mask, a cache, checkpointing or a wrapper. A way returns how
far the loss and the gradients are from the reference's: the largest relative error of a tensor.
"""

import copy
import functools
import pickle
from functools import partial

import torch
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from ways.kv_sharing import (
    CHECKPOINTING,
    RATE,
    TRAINER,
    checkpointed,
    collected,
    distance,
    one_rank,
    plain,
    trainer_steps,
)

from nrl_patches.patches._shared.packing import leak, tiny_model

FAMILIES = {
    "Qwen3": {},
    "Mistral": {"sliding_window": 3},
    "Gemma3": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma4": {
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "num_kv_shared_layers": 0,
    },
    "GptOss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 3},
    "Afmoe": {
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_dense_layers": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
}
"""By the prefix of their classes, what their tiny models need."""

WITHOUT_SDPA = ("GptOss",)

LENGTHS = ((4, 1, 5), (7, 3))
"""Of the sequences that are packed in each row."""

TOKENS = torch.randint(1, 64, (2, 10), generator=torch.Generator().manual_seed(1))
POSITIONS = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in LENGTHS])
LABELS = TOKENS.masked_fill(POSITIONS == 0, -100)
"""No sequence predicts the beginning of the next."""

ONES = torch.ones_like(TOKENS)


def build(family="Mistral", attention=None):
    config = f"{family}Text" if family.startswith("Gemma") else family
    attention = attention or ("eager" if family in WITHOUT_SDPA else "sdpa")
    return tiny_model(config, attention, of=family, **FAMILIES[family]).train()


def call(model, **how):
    given = {"attention_mask": ONES, "use_cache": False} | how
    return model(input_ids=TOKENS, position_ids=POSITIONS, labels=LABELS, **given)


def gradients(model, forward=call):
    """The loss and the gradients of one step, by the names of the plain model."""
    model.zero_grad()
    loss = forward(model).loss
    loss.backward()
    return {"loss": loss.detach(), **collected(model)}


def one_by_one(model):
    """The loss and the gradients of the sequences, each in a forward of its own."""
    model.zero_grad()
    total = torch.zeros(())
    for tokens, lengths in zip(TOKENS, LENGTHS, strict=True):
        for sequence in tokens.split(lengths):
            logits = model(input_ids=sequence[None], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), sequence[1:], reduction="sum")
            total = total + loss / (LABELS != -100).sum()
    total.backward()
    return {"loss": total.detach(), **collected(model)}


@functools.cache
def reference(family="Mistral"):
    return one_by_one(build(family))


def far(model, forward=call, family="Mistral"):
    return distance(gradients(model, forward), reference(family))


def by_family(family, attention, **how):
    return far(build(family, attention), partial(call, **how), family)


def by_position():
    """The labels stand behind parameters whose number differs by release, so the loss is made here."""
    model = build()
    logits = model(TOKENS, ONES, POSITIONS).logits
    loss = model.loss_function(logits=logits, labels=LABELS, vocab_size=model.config.vocab_size)
    loss.backward()
    return distance({"loss": loss.detach(), **collected(model)}, reference())


def subclass():
    model = build()
    kind = type(model)

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    renamed = Renamed(model.config).train()
    renamed.load_state_dict(model.state_dict())
    return far(renamed)


def ddp(checkpointing, **options):
    model = checkpointed(build(), checkpointing)
    one_rank()
    parallel = DistributedDataParallel(model, **options)
    return max(far(parallel) for _ in range(2))


def fsdp2(checkpointing):
    model = checkpointed(build(), checkpointing)
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(fully_shard(model, mesh=one_rank()))


def leak_under_fsdp1(model):
    """How far packed logits are off where each mixer is a unit of FSDP1's, as a policy by size may have it."""
    wrap = partial(
        FullyShardedDataParallel,
        process_group=one_rank().get_group(),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if hasattr(child, "conv1d") or hasattr(child, "conv"):
                setattr(module, name, wrap(child))
    return leak(wrap(model.eval()), use_cache=False)


def lora(checkpointing):
    """The gradient of B at B = 0 follows from that of the weight: it is dW @ A.T, times the scale, which is 1."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(build(), config)
    base = adapted.base_model.model
    if checkpointing != "none":
        base.enable_input_require_grads()
    checkpointed(base, checkpointing)
    adapted.train()
    call(adapted).loss.backward()
    weights = {plain(name): weight for name, weight in base.named_parameters()}
    found, expected = {}, {}
    for name, gradient in reference().items():
        a = weights.get(name.replace(".weight", ".lora_A.default.weight"))
        if a is not None and name.endswith(".weight"):
            found[name] = weights[name.replace(".weight", ".lora_B.default.weight")].grad
            expected[name] = gradient @ a.detach().T
    assert len(expected) == 14
    return distance(found, expected)


def trained(family="Mistral", **arguments):
    """Two steps of the Trainer, against the same one by one."""
    columns = {"input_ids": TOKENS, "attention_mask": ONES, "position_ids": POSITIONS, "labels": LABELS}
    steps = trainer_steps(build(family), columns, 2, **arguments)
    return max(distance(found, expected) for found, expected in zip(steps, two_steps(family), strict=True))


@functools.cache
def two_steps(family):
    model, steps = build(family), []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(2):
        one_by_one(model)
        steps.append(collected(model))
        optimizer.step()
    return steps


def between_padding(family, *, fill):
    """Rows of which some are packed and some padded, in every order, against each sequence alone."""
    model = build(family).eval()
    parts = ((("_", 2), 3, 4), (3, 4, ("_", 2)), (3, ("_", 2), 4), (("_", 3), 6), (6, ("_", 3)), (9,), (1, 1, 7))
    mask, positions, tokens = (torch.zeros(len(parts), 9, dtype=torch.long) for _ in range(3))
    tokens += torch.randint(1, 64, tokens.shape, generator=torch.Generator().manual_seed(2))
    sequences = []
    for row, pieces in enumerate(parts):
        at = 0
        for piece in pieces:
            length = piece[1] if isinstance(piece, tuple) else piece
            here = slice(at, at + length)
            if length is piece:
                mask[row, here], positions[row, here] = 1, torch.arange(length)
                sequences.append((row, here))
            else:
                positions[row, here] = fill
            at += length
    with torch.no_grad():
        packed = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
        gaps = [
            packed[row, here] - model(input_ids=tokens[row, here][None], use_cache=False).logits[0]
            for row, here in sequences
        ]
    return max(gap.abs().max() for gap in gaps) / packed.abs().max()


def flattened():
    """transformers' own collator makes one row without a mask; the model adds its empty cache."""
    import transformers

    rows = [{"input_ids": s.tolist()} for row, ns in zip(TOKENS, LENGTHS, strict=True) for s in row.split(ns)]
    batch = transformers.DataCollatorWithFlattening(return_tensors="pt")(rows)
    assert "attention_mask" not in batch
    return far(build(), lambda model: model(**batch, use_cache=True))


def under_autocast(checkpointing):
    """Against the same one by one; that itself, which is coarse, against full precision."""
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(build())
        found = gradients(checkpointed(build(), checkpointing))
    flat, exact = (torch.cat([g[n].flatten() for n in sorted(g)]) for g in (expected, reference()))
    coarse = ((flat - exact).norm() / exact.norm()).item()
    assert coarse < 0.1, coarse
    return distance(found, expected)


def compiled(backend, checkpointing, *, fullgraph, **how):
    model = checkpointed(build(), checkpointing)
    torch._dynamo.reset()
    forward = torch.compile(model, backend=backend, fullgraph=fullgraph)
    return far(model, lambda _: call(forward, **how))


COMPILE = {
    "nothing": (),
    "some": (("aot_eager", " fullgraph", "none"),),
    "all": (
        ("eager", " fullgraph", "none"),
        ("eager", "", "enabled reentrant"),
        ("aot_eager", " fullgraph", "none"),
        ("aot_eager", " fullgraph", "enabled non-reentrant"),
        ("inductor", "", "none"),
    ),
}
"""What is compiled: backend, fullgraph or not, checkpointing. Each takes some seconds."""

GIVEN = {
    "a mask": {},
    "a cache": {"attention_mask": None, "use_cache": True},
    "both": {"use_cache": True},
    "neither": {"attention_mask": None},
}


def ways(families=("Mistral",), *, compiles="all"):
    """Yield the name of each way and the function that goes it.

    Args:
        families: The families of models that the release has.
        compiles: A key of ``COMPILE``.
    """
    yield "called by position", by_position
    for family in families:
        for attention in ("eager",) if family in WITHOUT_SDPA else ("eager", "sdpa"):
            for given, how in GIVEN.items():
                yield f"{family}, {attention}, {given}", partial(by_family, family, attention, **how)
        for fill in (0, 1):
            yield f"{family}, between padding of position {fill}", partial(between_padding, family, fill=fill)
    yield "DataCollatorWithFlattening", flattened
    yield "deepcopy", lambda: far(copy.deepcopy(build()))
    yield "pickle", lambda: far(pickle.loads(pickle.dumps(build())))
    yield "subclass", subclass
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, **settings)
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", lambda how=how: far(checkpointed(build(), how))
        yield f"LoRA, checkpointing {how}", partial(lora, how)
        yield f"autocast, checkpointing {how}", partial(under_autocast, how)
        yield f"FSDP2, checkpointing {how}", partial(fsdp2, how)
        yield f"DDP, checkpointing {how}", partial(ddp, how)
        yield f"DDP find_unused_parameters, checkpointing {how}", partial(ddp, how, find_unused_parameters=True)
    for backend, full, how in COMPILE[compiles]:
        yield f"compile {backend}{full}, checkpointing {how}", partial(compiled, backend, how, fullgraph=bool(full))
    if COMPILE[compiles]:
        given = GIVEN["a cache"]
        yield "compile aot_eager fullgraph, a cache", partial(compiled, "aot_eager", "none", fullgraph=True, **given)
