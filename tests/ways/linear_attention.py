"""Every way to give packed and padded rows to models with gated delta nets, against the same sequences one by one.

The reference of a release is eager, unpacked, without a mask, a cache, checkpointing or a wrapper. A way returns how
far the loss and the gradients are from the reference's: the largest relative error of a tensor.
"""

import copy
import functools
import pickle
from functools import partial

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
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
from ways.packing import COMPILE, LABELS, LENGTHS, POSITIONS, TOKENS, gradients, leak_under_fsdp1, one_by_one

from nrl_patches.patches._shared.linear_attention_models import tiny_model

TOLD = {
    "cu_seq_lens_q": torch.tensor([0, 4, 5, 10, 17, 20], dtype=torch.int32),
    "seq_idx": torch.tensor([[0] * 4 + [1] + [2] * 5, [0] * 7 + [1] * 3], dtype=torch.int32),
}
"""The sequences of the rows, in the words of kernels."""


GIVEN = {"a mask of ones": {"attention_mask": torch.ones_like(TOKENS)}, "an empty cache": {"use_cache": True}}


def build(family, attention="sdpa"):
    """With weights that let the numbers of one step say something about the next."""
    model = tiny_model(family, attention)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5 if weight.dim() > 1 else 1.0)
    return model.train()


def call(model, **how):
    given = {"position_ids": POSITIONS, "use_cache": False} | how
    return model(input_ids=TOKENS, labels=LABELS, **given)


@functools.cache
def reference(family):
    return one_by_one(build(family))


def far(family, model, forward=call):
    return distance(gradients(model, forward), reference(family))


def by_position(family):
    """The labels stand behind parameters whose number differs by release, so the loss is made here."""
    model = build(family)
    logits = model(TOKENS, None, POSITIONS, use_cache=False).logits
    loss = model.loss_function(logits=logits, labels=LABELS, vocab_size=model.config.vocab_size)
    loss.backward()
    return distance({"loss": loss.detach(), **collected(model)}, reference(family))


def subclass(family):
    model = build(family)
    kind = type(model)

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    renamed = Renamed(model.config).train()
    renamed.load_state_dict(model.state_dict())
    return far(family, renamed)


def told_by_keyword_alone(family, name):
    """No positions restart, so the full attention cannot know of the sequences."""
    try:
        return far(family, build(family), partial(call, **{"position_ids": None, name: TOLD[name]}))
    except ValueError as error:
        return 0.0 if "packed sequences" in str(error) else float("nan")


def told_twice(family, **told):
    return far(family, build(family), partial(call, **told))


def across_chunks(family):
    """Sequences that begin and end anywhere among the chunks of 64, one of which has many."""
    model, lengths = build(family).eval(), (70, *[3] * 21, 1, 66)
    tokens = torch.randint(1, 64, (1, sum(lengths)), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        packed = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in tokens.split(lengths, 1)], 1)
    return (packed - alone).abs().max() / alone.abs().max()


def padded(family, side):
    """A single row, between padding or not, against the tokens alone."""
    model = build(family)
    tokens, mask = TOKENS[:1], torch.ones_like(TOKENS[:1])
    padding = torch.full((1, 3), 7)
    for where in ("left", "right"):
        if where in side:
            parts = ((padding, tokens), (torch.zeros_like(padding), mask))
            tokens, mask = (torch.cat(both if where == "left" else both[::-1], 1) for both in parts)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def forward(model, tokens, mask, positions):
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return logits[:, mask[0].bool()] if mask is not None else logits

    results = []
    for given in ((tokens, mask, positions), (TOKENS[:1], None, None)):
        model.zero_grad()
        logits = forward(model, *given)
        logits.square().mean().backward()
        results.append({"logits": logits.detach(), **collected(model)})
    return distance(*results)


def generated(family):
    """A prompt and a cache: token by token as all at once."""
    model = build(family).eval()
    prompt = TOKENS[:1]
    with torch.no_grad():
        out = model.generate(
            prompt, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        whole = model(input_ids=out.sequences, use_cache=False).logits[:, prompt.shape[1] - 1 : -1]
    step = torch.stack(out.logits, 1)
    return (step - whole[:, : step.shape[1]]).abs().max() / whole.abs().max()


def mixers_wrapped(family, which):
    """What is recomputed is the mixer alone, as some trainers choose."""
    model = build(family)
    kind = CheckpointImpl.REENTRANT if which == "reentrant" else CheckpointImpl.NO_REENTRANT
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn = checkpoint_wrapper(layer.linear_attn, checkpoint_impl=kind)
    return far(family, model)


def ddp(family, checkpointing, **options):
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
        a = weights.get(name.replace(".weight", ".lora_A.default.weight"))
        if a is not None and name.endswith(".weight"):
            found[name] = weights[name.replace(".weight", ".lora_B.default.weight")].grad
            expected[name] = gradient @ a.detach().T
    assert any("linear_attn" in name for name in expected)
    return distance(found, expected)


def lora_in_the_convolution(family):
    """An adapter that is not 0, against the same one by one, since PEFT cannot merge it."""
    import peft

    model = build(family).eval()
    rank = next(module.groups for name, module in model.named_modules() if name.endswith("linear_attn.conv1d"))
    config = peft.LoraConfig(r=rank, target_modules=["conv1d"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        found = call(adapted).logits
        alone = [
            torch.cat([adapted(input_ids=part[None], use_cache=False).logits for part in row.split(lengths)], 1)
            for row, lengths in zip(TOKENS, LENGTHS, strict=True)
        ]
    expected = torch.cat(alone)
    return (found - expected).abs().max() / expected.abs().max()


def trained(family, **arguments):
    """Two steps of the Trainer, against the same one by one."""
    columns = {"input_ids": TOKENS, "position_ids": POSITIONS, "labels": LABELS}
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


def flattened(family):
    """transformers' own collator makes one row without a mask; the model adds its empty cache."""
    import transformers

    rows = [{"input_ids": s.tolist()} for row, ns in zip(TOKENS, LENGTHS, strict=True) for s in row.split(ns)]
    batch = transformers.DataCollatorWithFlattening(return_tensors="pt")(rows)
    return far(family, build(family), lambda model: model(**batch, use_cache=False))


def under_autocast(family, checkpointing):
    """Against the same one by one; what is left is that sums are rounded in another order."""
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(build(family))
        found = gradients(checkpointed(build(family), checkpointing))
    flat, exact = (torch.cat([g[n].flatten() for n in sorted(g)]) for g in (expected, reference(family)))
    coarse = ((flat - exact).norm() / exact.norm()).item()
    assert coarse < 0.1, coarse
    return distance(found, expected)


def compiled(family, backend, checkpointing, *, fullgraph):
    model = checkpointed(build(family), checkpointing)
    torch._dynamo.reset()
    forward = torch.compile(model, backend=backend, fullgraph=fullgraph)
    return far(family, model, lambda _: call(forward))


def evaluated(family):
    """By one graph, rows that are packed and rows that are not. Some releases cannot train by this backend."""
    model = build(family).eval()
    torch._dynamo.reset()
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    gaps = []
    with torch.no_grad():
        for positions in (POSITIONS, torch.arange(TOKENS.shape[1]).expand_as(TOKENS).contiguous()):
            given = {"input_ids": TOKENS, "position_ids": positions, "use_cache": False}
            expected = model(**given).logits
            gaps.append((forward(**given).logits - expected).abs().max() / expected.abs().max())
    return max(gaps)


def ways(families=("qwen3_5",), *, compiles="all"):
    """Yield the name of each way and the function that goes it.

    Args:
        families: The families of models that the release has. All ways are gone of the first, some of the others.
        compiles: A key of ``COMPILE``.
    """
    for family in families:
        yield f"{family}, eager", lambda family=family: far(family, build(family, "eager"))
        yield f"{family}, sdpa", lambda family=family: far(family, build(family))
        for label, how in GIVEN.items():
            yield f"{family}, {label}", partial(told_twice, family, **how)
        yield f"{family}, across chunks", partial(across_chunks, family)
        yield f"{family}, generated", partial(generated, family)
        for side in ("left", "right", "left and right"):
            yield f"{family}, padded {side}", partial(padded, family, side)
        for name, told in TOLD.items():
            yield f"{family}, {name} alone", partial(told_by_keyword_alone, family, name)
            yield (
                f"{family}, {name} and positions",
                partial(told_twice, family, **{name: told}),
            )
    main = families[0]
    go = partial(far, main)
    yield "called by position", partial(by_position, main)
    yield "DataCollatorWithFlattening", partial(flattened, main)
    yield "deepcopy", lambda: go(copy.deepcopy(build(main)))
    yield "pickle", lambda: go(pickle.loads(pickle.dumps(build(main))))
    yield "subclass", partial(subclass, main)
    yield "mixers under FSDP1", lambda: leak_under_fsdp1(build(main))
    yield "LoRA in the convolution", partial(lora_in_the_convolution, main)
    for which in ("non-reentrant", "reentrant"):
        yield f"mixers wrapped {which}", partial(mixers_wrapped, main, which)
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, main, **settings)
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", lambda how=how: go(checkpointed(build(main), how))
        yield f"LoRA, checkpointing {how}", partial(lora, main, how)
        yield f"autocast, checkpointing {how}", partial(under_autocast, main, how)
        yield f"FSDP2, checkpointing {how}", partial(fsdp2, main, how)
        yield f"DDP, checkpointing {how}", partial(ddp, main, how)
        yield f"DDP find_unused_parameters, checkpointing {how}", partial(ddp, main, how, find_unused_parameters=True)
    if COMPILE[compiles]:
        yield "compile aot_eager fullgraph, evaluated", partial(evaluated, main)
    for backend, full, how in COMPILE[compiles]:
        name = f"compile {backend}{full}, checkpointing {how}"
        yield name, partial(compiled, main, backend, how, fullgraph=bool(full))
