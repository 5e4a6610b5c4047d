"""Every way to train a model that takes images on text, against the text model of the same weights.

The reference of a release is upstream's class for text alone, eager, nothing checkpointed, nothing wrapped. A way
returns how far the loss and the gradients are from the reference's: the largest relative error of a tensor.
"""

import copy
import functools
import pickle
from functools import partial
from types import SimpleNamespace

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from ways.kv_sharing import CHECKPOINTING, COMPILE, TRAINER, collected, distance, one_rank, plain, trainer_steps
from ways.kv_sharing import checkpointed as wrapped

from nrl_patches.patches._shared import token_types

TEXT_MODELS = {"gemma3": "Gemma3ForCausalLM", "gemma4": "Gemma4ForCausalLM", "paligemma": "GemmaForCausalLM"}

TOKENS = torch.randint(3, 58, (2, 10), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(TOKENS).index_fill(1, torch.arange(7, 10), 0)
MASK[1] = 1
POSITIONS = torch.arange(10).expand(2, -1)
PACKED = torch.cat([torch.arange(6), torch.arange(4)]).expand(2, -1)
# The first label is none: the Trainer divides by the number of labels, the model by that of the predictions.
LABELS = TOKENS.masked_fill((MASK == 0) | (POSITIONS == 0), -100)
PADDED = {"input_ids": TOKENS, "attention_mask": MASK, "labels": LABELS}


def build(family, kind=None):
    model = getattr(token_types, family)()
    if kind is not None:
        model.__class__ = kind
    return model.train()


def text_model(family):
    """Return upstream's text model with the weights of the one that takes images."""
    import transformers

    model = build(family)
    config = copy.deepcopy(model.config.get_text_config())
    if family == "paligemma":
        config.use_bidirectional_attention = None  # Which PaliGemma sets for its prompts.
    text = getattr(transformers, TEXT_MODELS[family])(config).train()
    with torch.no_grad():
        weights = {inner(name): weight for name, weight in model.named_parameters()}
        for name, weight in text.named_parameters():
            weight.copy_(weights[inner(name)])
    return text


def inner(name):
    """What a parameter is called in the text model."""
    return plain(name).replace("language_model.", "")


def call(model):
    return model(**PADDED, use_cache=False)


def call_text(model):
    """PaliGemma counts from one, which rounds otherwise in half precision."""
    first = int(type(model).__name__ == TEXT_MODELS["paligemma"])
    return model(**PADDED, position_ids=POSITIONS + first, use_cache=False)


def taken(model):
    """The gradients of the language model, by the names of the text model; those of an idle tower are none or zero."""
    found = {inner(name): gradient for name, gradient in collected(model).items()}
    idle = [name for name in found if "vision" in name or "projector" in name]
    assert not any(found[name].any() for name in idle)
    return {name: gradient for name, gradient in found.items() if name not in idle}


def step(model, forward=call):
    model.zero_grad()
    loss = forward(model).loss
    loss.backward()
    return {"loss": loss.detach(), **taken(model)}


@functools.cache
def reference(family):
    return step(text_model(family), call_text)


def far(family, model, forward=call):
    return distance(step(model, forward), reference(family))


def checkpointed(model, how):
    if not how.startswith("wrapped"):
        return wrapped(model, how)

    wrapped(SimpleNamespace(model=model.model.language_model), how)
    return model


def by_position(family):
    """What stands between the pixels and the labels differs by release, so the loss is made here."""
    model = build(family)
    logits = model(TOKENS, None, attention_mask=MASK, use_cache=False).logits
    loss = model.loss_function(logits=logits, labels=LABELS, vocab_size=64)
    loss.backward()
    return distance({"loss": loss.detach(), **taken(model)}, reference(family))


def packed(family):
    """Two sequences in a row, against each by itself."""
    model, text = build(family), text_model(family)
    found = model(input_ids=TOKENS, position_ids=PACKED, labels=TOKENS, use_cache=False).logits
    alone = [text(input_ids=part, use_cache=False).logits for part in TOKENS.split((6, 4), 1)]
    return distance({"logits": found}, {"logits": torch.cat(alone, 1)})


def without_mask(family):
    """And without labels; with the cache that is the default."""
    found, expected = (m(input_ids=TOKENS).logits for m in (build(family), text_model(family)))
    return distance({"logits": found}, {"logits": expected})


def evaluated(family):
    return distance(*({"loss": call(m.eval()).loss} for m in (build(family), text_model(family))))


def generated(family):
    """As with the types that a processor makes of text; a PaliGemma takes the prompt for one."""
    model = build(family).eval()
    how = {"input_ids": TOKENS, "max_new_tokens": 4, "do_sample": False}
    name = "mm_token_type_ids" if family == "gemma4" else "token_type_ids"
    return float((model.generate(**how) != model.generate(**how, **{name: torch.zeros_like(TOKENS)})).sum())


def subclass(family):
    kind = type(build(family))

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    return far(family, build(family, Renamed))


def ddp(family, how, **options):
    model = build(family)
    # An idle tower has no gradient, which DDP takes only where it is told to look for such.
    for name, weight in model.named_parameters():
        weight.requires_grad_(options.get("find_unused_parameters", False) or "language_model" in name)
    parallel = DistributedDataParallel(checkpointed(model, how), process_group=one_rank().get_group(), **options)
    return max(far(family, parallel) for _ in range(2))


def fsdp2(family, how):
    model = checkpointed(build(family), how)
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(family, fully_shard(model, mesh=one_rank()))


def lora(family, how):
    """The gradient of B at B = 0 follows from that of the weight: it is dW @ A.T, times the scale, which is 1."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=r".*language_model.*_proj", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(build(family), config).train()
    base = adapted.base_model.model
    if how != "none":
        base.enable_input_require_grads()
    checkpointed(base, how)
    call(adapted).loss.backward()
    weights = {inner(name): weight for name, weight in base.named_parameters()}
    found, expected = {}, {}
    for name, gradient in reference(family).items():
        b = weights.get(name.replace(".weight", ".lora_B.default.weight"))
        if name.endswith(".weight") and b is not None:
            found[name] = torch.zeros_like(b) if b.grad is None else b.grad
            expected[name] = gradient @ weights[name.replace(".weight", ".lora_A.default.weight")].detach().T
    assert len(expected) >= 14
    return distance(found, expected)


def trained(family, **arguments):
    """One step of the Trainer."""
    (found,) = trainer_steps(build(family), PADDED, 1, taken, **arguments)
    return distance(found, {name: gradient for name, gradient in reference(family).items() if name != "loss"})


def under_autocast(family, how):
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(text_model(family), call_text)
        return distance(step(checkpointed(build(family), how)), expected)


def compiled(family, backend, how, *, fullgraph):
    model = checkpointed(build(family), how)
    torch._dynamo.reset()
    forward = torch.compile(model, backend=backend, fullgraph=fullgraph)
    return far(family, model, lambda _: call(forward))


def ways(*, families="gemma3 gemma4 paligemma", compiles="gemma3", packs=True):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Names of functions of ``token_types``.
        compiles: The one of them that is compiled, too; or none.
        packs: Whether the release tells packed sequences apart, which it does not where a model makes its own masks.
    """
    for family in families.split():
        for name, way in ways_of(family, packs=packs):
            yield f"{family}, {name}", way
    for backend, full, how in COMPILE["all"] if compiles else ():
        yield (
            f"{compiles}, compile {backend}{full}, checkpointing {how}",
            partial(compiled, compiles, backend, how, fullgraph=bool(full)),
        )


def ways_of(family, *, packs):
    yield "called by position", partial(by_position, family)
    if packs:
        yield "packed", partial(packed, family)
    yield "without a mask", partial(without_mask, family)
    yield "evaluation", partial(evaluated, family)
    yield "generation", partial(generated, family)
    yield "deepcopy", lambda: far(family, copy.deepcopy(build(family)))
    yield "pickle", lambda: far(family, pickle.loads(pickle.dumps(build(family))))
    yield "subclass", partial(subclass, family)
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, family, **settings)
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", lambda how=how: far(family, checkpointed(build(family), how))
        yield f"LoRA, checkpointing {how}", partial(lora, family, how)
        yield f"autocast, checkpointing {how}", partial(under_autocast, family, how)
        yield f"FSDP2, checkpointing {how}", partial(fsdp2, family, how)
        yield f"DDP, checkpointing {how}", partial(ddp, family, how)
        yield f"DDP find_unused_parameters, checkpointing {how}", partial(ddp, family, how, find_unused_parameters=True)
