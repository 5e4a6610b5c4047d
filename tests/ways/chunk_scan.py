"""Every way to give a model of Mamba-2 layers rows longer than a chunk, each against the same model in a single chunk.

The reference of a release is eager, without padding, a cache, checkpointing or a wrapper, and its chunk is longer than
a row; what is generated token by token holds that to the recurrence itself. A way returns how far the loss and the
gradients are from the reference's: the largest relative error of a tensor.
"""

import copy
import functools
import pickle
from functools import partial

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from ways import packing
from ways.kv_sharing import CHECKPOINTING, TRAINER, checkpointed, collected, distance, one_rank, plain, trainer_steps

from nrl_patches.patches._shared.state_space_models import tiny_model, without_attention

LENGTH, CHUNK = 11, 3
TOKENS = torch.randint(1, 64, (2, LENGTH), generator=torch.Generator().manual_seed(3))
COLUMNS = {"input_ids": TOKENS, "labels": TOKENS}
PROMPT = 8
"""How many tokens there are when generation begins: more than two chunks."""


def build(family, chunk=CHUNK):
    return tiny_model(family, chunk_size=chunk).train()


def call(model, **how):
    return model(input_ids=TOKENS, labels=TOKENS, **{"use_cache": False} | how)


def gradients(model, forward=call):
    return packing.gradients(model, forward)


@functools.cache
def reference(family):
    return gradients(build(family, LENGTH))


def far(model, family, forward=call):
    return distance(gradients(model, forward), reference(family))


@functools.cache
def whole(family):
    """The logits of the reference."""
    with torch.no_grad():
        return build(family, LENGTH).eval()(input_ids=TOKENS, use_cache=False).logits


def from_reference(family, logits, begin=0):
    return distance({"logits": logits}, {"logits": whole(family)[:, begin : begin + logits.shape[1]]})


def by_position(family):
    model = build(family)
    logits = model(TOKENS, torch.ones_like(TOKENS), use_cache=False).logits
    loss = model.loss_function(logits, TOKENS, model.config.vocab_size)
    loss.backward()
    return distance({"loss": loss.detach(), **collected(model)}, reference(family))


def causal(family):
    """The last token of a row does not change what is predicted before it."""
    model, other = build(family).eval(), TOKENS.clone()
    other[:, -1] = 63 - other[:, -1]
    with torch.no_grad():
        one, two = (model(input_ids=tokens, use_cache=False).logits[:, :-1] for tokens in (TOKENS, other))
    return distance({"logits": two}, {"logits": one})


def padded(family, *, left):
    model, pad = build(family).eval(), torch.zeros(2, 4, dtype=torch.long)
    mask = torch.cat([pad, torch.ones_like(TOKENS)] if left else [torch.ones_like(TOKENS), pad], 1)
    tokens = torch.cat([pad, TOKENS] if left else [TOKENS, pad], 1)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return from_reference(family, logits[:, 4:] if left else logits[:, :-4])


def generated(family, prompt):
    """Against one forward of the reference over what was generated; of one token the prompt has no chunks."""
    how = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        found = (
            build(family)
            .eval()
            .generate(TOKENS[:, :prompt], attention_mask=torch.ones(2, prompt), max_new_tokens=LENGTH - prompt, **how)
        )
        expected = build(family, LENGTH).eval()(input_ids=found.sequences[:, :-1], use_cache=False).logits
    return distance({"logits": torch.stack(found.logits, 1)}, {"logits": expected[:, prompt - 1 :]})


def in_parts(family):
    """Continue a prompt by more than a chunk at once."""
    model = build(family).eval()
    with torch.no_grad():
        cache = model(input_ids=TOKENS[:, :4], use_cache=True).past_key_values
        rest = model(input_ids=TOKENS[:, 4:], past_key_values=cache, use_cache=True).logits
    return from_reference(family, rest, 4)


def packed(family):
    """Packed sequences of more than a chunk, which another patch separates."""
    expected = packing.one_by_one(without_attention(build(family, LENGTH)))
    return distance(gradients(without_attention(build(family)), packing.call), expected)


def bfloat16(family):
    """Against the reference in bfloat16; what that rounds is not told apart."""
    with torch.no_grad():
        chunked, single = (
            build(family, chunk).bfloat16().eval()(input_ids=TOKENS, use_cache=False).logits.float()
            for chunk in (CHUNK, LENGTH)
        )
    return max(0.0, ((chunked - single).norm() / single.norm()).item() - 2e-2)


def under_autocast(family, checkpointing):
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(build(family, LENGTH))
        found = gradients(checkpointed(build(family), checkpointing))
    flat = [torch.cat([g[n].float().flatten() for n in sorted(expected)]) for g in (found, expected)]
    return max(0.0, ((flat[0] - flat[1]).norm() / flat[1].norm()).item() - 2e-2)


def compiled(family, backend):
    torch._dynamo.reset()
    model = build(family)
    forward = torch.compile(model, backend=backend, fullgraph=True)
    return far(model, family, lambda _: call(forward))


def subclass(family):
    model = build(family)
    kind = type(model)

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    renamed = Renamed(model.config).train()
    renamed.load_state_dict(model.state_dict())
    return far(renamed, family)


def ddp(family, checkpointing, **options):
    model = checkpointed(build(family), checkpointing)
    one_rank()
    parallel = DistributedDataParallel(model, **options)
    return max(far(parallel, family) for _ in range(2))


def fsdp2(family, checkpointing):
    model = checkpointed(build(family), checkpointing)
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(fully_shard(model, mesh=one_rank()), family)


def lora(family, checkpointing):
    """The gradient of B at B = 0 follows from that of the weight: it is dW @ A.T, times the scale, which is 1."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["in_proj"], task_type="CAUSAL_LM")
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
    assert expected
    return distance(found, expected)


def trained(family, **arguments):
    """Two steps of the Trainer, against the same in a single chunk."""
    steps = trainer_steps(build(family), COLUMNS, 2, **arguments)
    return max(distance(found, expected) for found, expected in zip(steps, two_steps(family), strict=True))


@functools.cache
def two_steps(family):
    return trainer_steps(build(family, LENGTH), COLUMNS, 2)


def ways(families=("NemotronH",), *, whole=True, parts=False, packs=True):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Of the models that the release has.
        whole: Whether the first of them goes all ways.
        parts: Whether the release continues a prompt by several tokens.
        packs: Whether packed rows are tried.
    """
    for family in families:
        yield f"{family}, eager", lambda family=family: far(build(family), family)
        yield f"{family}, causal", partial(causal, family)
        yield f"{family}, padded on the left", partial(padded, family, left=True)
        yield f"{family}, padded on the right", partial(padded, family, left=False)
        yield f"{family}, generated after {PROMPT} tokens", partial(generated, family, PROMPT)
        yield f"{family}, generated token by token", partial(generated, family, 1)
        yield f"{family}, bfloat16", partial(bfloat16, family)
        if parts:
            yield f"{family}, prompt in parts", partial(in_parts, family)
        if packs:
            yield f"{family}, packed", partial(packed, family)
    if not whole:
        return
    main = families[0]
    yield "called by position", partial(by_position, main)
    yield "deepcopy", lambda: far(copy.deepcopy(build(main)), main)
    yield "pickle", lambda: far(pickle.loads(pickle.dumps(build(main))), main)
    yield "subclass", partial(subclass, main)
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, main, **settings)
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", lambda how=how: far(checkpointed(build(main), how), main)
        yield f"LoRA, checkpointing {how}", partial(lora, main, how)
        yield f"autocast, checkpointing {how}", partial(under_autocast, main, how)
        yield f"FSDP2, checkpointing {how}", partial(fsdp2, main, how)
        yield f"DDP, checkpointing {how}", partial(ddp, main, how)
        yield f"DDP find_unused_parameters, checkpointing {how}", partial(ddp, main, how, find_unused_parameters=True)
    for backend in ("eager", "aot_eager"):
        yield f"compile {backend} fullgraph", partial(compiled, main, backend)
