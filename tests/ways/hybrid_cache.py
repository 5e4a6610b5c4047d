"""Every way to decode with the cache of a hybrid model, against one forward pass over the same tokens without a cache.

The reference of a release is eager, without padding, checkpointing or a wrapper. A way returns how far the logits are
from the reference's, or the loss and the gradients if it trains: the largest relative error of a tensor.
"""

import copy
import functools
import importlib
import inspect
import itertools
import pickle
from functools import partial

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from ways.kv_sharing import CHECKPOINTING, RATE, TRAINER, checkpointed, collected, distance, one_rank, trainer_steps
from ways.packing import LABELS, LENGTHS, ONES, POSITIONS, TOKENS, gradients

import nrl_patches
from nrl_patches.patches._shared.state_space_models import tiny_model, without_attention

FAMILIES = ("Bamba", "GraniteMoeHybrid", "Jamba")
PROMPT, LENGTH = 6, TOKENS.shape[1]
PATCHES = ("transformers.hybrid_cache_is_falsy", "transformers.mamba_packed_state")
GENERATED = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}


def empty_cache(model, batch):
    package = model.config.model_type
    module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    return module.HybridMambaAttentionDynamicCache(model.config, batch, dtype=torch.float32)


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@functools.cache
def reference(family):
    return logits_of(tiny_model(family), TOKENS)


def by_keyword(forward, tokens, cache, order):
    return forward(input_ids=tokens, past_key_values=cache, use_cache=True, cache_position=order)


def by_position(model, tokens, cache, order):
    names = list(inspect.signature(model.forward).parameters)
    given = {"input_ids": tokens, "past_key_values": cache, "use_cache": True, "cache_position": order}
    last = max(names.index(name) for name in given)
    return model(*(given.get(name) for name in names[: last + 1]))


def stepped(model, forward, cache=None):
    """Return the logits of a prompt, and of the tokens that are decoded after it, one by one."""
    cache = empty_cache(model, len(TOKENS)) if cache is None else cache
    parts = [slice(PROMPT), *(slice(at, at + 1) for at in range(PROMPT, LENGTH))]
    with torch.no_grad():
        return torch.cat([forward(TOKENS[:, at], cache, torch.arange(LENGTH)[at]).logits for at in parts], 1)


def far(model, family, run=None, step=by_keyword, cache=None):
    """How far the logits of a model, or of what runs it, are from the reference of its family."""
    logits = stepped(model, partial(step, model if run is None else run), cache)
    return distance({"logits": logits}, {"logits": reference(family)})


def from_whole(model, found, prompt=TOKENS[:, :PROMPT]):
    """Compare the logits that `generate` returned with those of one forward pass over what it generated."""
    whole = logits_of(model, found.sequences[:, :-1])[:, prompt.shape[1] - 1 :]
    return distance({"logits": torch.stack(found.logits, 1)}, {"logits": whole})


def generated(family, model=None, **how):
    model = model or tiny_model(family)
    options = GENERATED | {"max_new_tokens": LENGTH - PROMPT} | how
    with torch.no_grad():
        found = model.generate(TOKENS[:, :PROMPT], attention_mask=ONES[:, :PROMPT], **options)
    return from_whole(model, found)


def padded(family, batch):
    """A row that is padded on the left, alone or beside another."""
    model, prompt, mask = tiny_model(family), TOKENS[:batch, :PROMPT].clone(), ONES[:batch, :PROMPT].clone()
    prompt[0, :2], mask[0, :2] = 0, 0
    with torch.no_grad():
        found = model.generate(prompt, attention_mask=mask, max_new_tokens=LENGTH - PROMPT, **GENERATED)
    found.sequences, found.logits = found.sequences[:1, 2:], [logits[:1] for logits in found.logits]
    return from_whole(model, found, prompt[:1, 2:])


def beams(family):
    """Against the probability of what was found, which changes if a beam goes on with the state of another."""
    model, new = tiny_model(family), LENGTH - PROMPT
    options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0, "output_scores": True}
    with torch.no_grad():
        found = model.generate(
            TOKENS[:, :PROMPT], attention_mask=ONES[:, :PROMPT], max_new_tokens=new, **GENERATED | options
        )
    chances = logits_of(model, found.sequences[:, :-1])[:, -new:].log_softmax(-1)
    expected = chances.gather(-1, found.sequences[:, -new:, None]).sum((1, 2))
    return distance({"scores": found.sequences_scores}, {"scores": expected})


def refused(family, name):
    """Caches without places for states of Mamba layers raise in every release."""
    import transformers

    model = tiny_model(family)
    cache = getattr(transformers, name)(
        **({"config": model.config, "max_batch_size": 2, "max_cache_len": LENGTH} if name == "StaticCache" else {})
    )
    try:
        return far(model, family, cache=cache)
    except (AttributeError, RuntimeError):
        return 0.0


def twice(family):
    """Rows in a second cache are not told of those in the first."""
    model = tiny_model(family)
    return max(far(model, family) for _ in range(2))


def embeddings(family):
    """A prompt that is given as embeddings."""
    model = tiny_model(family)
    with torch.no_grad():
        found = model.generate(
            inputs_embeds=model.get_input_embeddings()(TOKENS[:, :PROMPT]),
            attention_mask=ONES[:, :PROMPT],
            max_new_tokens=LENGTH - PROMPT,
            **GENERATED,
        )
    found.sequences = torch.cat([TOKENS[:, :PROMPT], found.sequences], 1)
    return from_whole(model, found)


def packed(family):
    """Decode a token after packed rows, in eager attention that adds nothing: it belongs to the last sequence."""
    model = without_attention(tiny_model(family)).eval()
    cache, token = empty_cache(model, 2), torch.full((2, 1), 7)
    ends = torch.tensor([row[-1] for row in LENGTHS])
    with torch.no_grad():
        model(input_ids=TOKENS, position_ids=POSITIONS, past_key_values=cache, use_cache=True)
        found = model(
            input_ids=token,
            position_ids=ends[:, None],
            past_key_values=cache,
            use_cache=True,
            cache_position=torch.tensor([LENGTH]),
        ).logits[:, -1]
    alone = [logits_of(model, torch.cat([TOKENS[i, -n:], token[i]])[None])[:, -1] for i, n in enumerate(ends.tolist())]
    return distance({"logits": found}, {"logits": torch.cat(alone)})


def in_orders(family):
    """Both patches that rewrite the forward of Granite 4, taken off and put back in each order."""
    gaps = []
    for off, on in itertools.product(itertools.permutations(PATCHES), repeat=2):
        for patch in off:
            nrl_patches.undo(patch)
        for patch in on:
            nrl_patches.apply(patch)
        assert {nrl_patches.status()[patch].state for patch in PATCHES} <= {"applied", "pending"}
        gaps += [generated(family), packed(family)]
    return max(gaps)


def training(family, model=None, forward=None, expected=None):
    """The loss and the gradients of a step with `use_cache=True` and no cache, as a Trainer has it."""
    step = {"input_ids": TOKENS, "attention_mask": ONES, "labels": LABELS}
    model = (model or tiny_model(family)).train()
    expected = expected or gradients(tiny_model(family).train(), lambda m: m(**step, use_cache=False))
    return distance(gradients(model, lambda m: (forward or m)(**step, past_key_values=None, use_cache=True)), expected)


def trained(family, **arguments):
    """Two steps of the Trainer, and generation after them, against the same one by one."""
    columns = {"input_ids": TOKENS, "attention_mask": ONES, "labels": LABELS}
    trainee, model = tiny_model(family).train(), tiny_model(family).train()
    steps, optimizer = trainer_steps(trainee, columns, 2, **arguments), torch.optim.SGD(model.parameters(), lr=RATE)
    gaps = []
    for found in steps:
        optimizer.zero_grad()
        model(**columns, use_cache=False).loss.backward()
        gaps.append(distance(found, collected(model)))
        optimizer.step()
    return max(*gaps, generated(family, trainee.eval()))


def under_checkpointing(family, how):
    model = checkpointed(tiny_model(family), how)
    return max(far(model.eval(), family), training(family, model))


def under_autocast(family):
    """Against the reference under autocast; what that rounds is not told apart."""
    model = tiny_model(family)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = stepped(model, partial(by_keyword, model)).float(), logits_of(model, TOKENS).float()
    return max(0.0, ((found - expected).norm() / expected.norm()).item() - 5e-2)


def compiled(family, backend):
    torch._dynamo.reset()
    model = tiny_model(family)
    return far(model, family, torch.compile(model, backend=backend))


def subclass(family, own_forward):
    model = tiny_model(family)
    kind = type(model)

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

        if own_forward:

            def forward(self, *args, **kwargs):
                return super().forward(*args, **kwargs)

    renamed = Renamed(model.config).eval()
    renamed.load_state_dict(model.state_dict())
    return max(far(renamed, family), generated(family, renamed))


def cache_of_a_subclass(family):
    model = tiny_model(family)
    kind = type(empty_cache(model, 2))
    cache = type("Renamed", (kind,), {})(model.config, 2, dtype=torch.float32)
    return far(model, family, cache=cache)


def copied_cache(family, copy_of):
    """Decode the same token twice, with a copy of the cache of the prompt."""
    model = tiny_model(family)
    cache = empty_cache(model, 2)
    with torch.no_grad():
        by_keyword(model, TOKENS[:, :PROMPT], cache, torch.arange(PROMPT))
        caches = (copy_of(cache), cache)
        order = torch.tensor([PROMPT])
        logits = [by_keyword(model, TOKENS[:, PROMPT : PROMPT + 1], c, order).logits for c in caches]
    expected = {str(i): reference(family)[:, PROMPT : PROMPT + 1] for i in range(2)}
    return distance({str(i): found for i, found in enumerate(logits)}, expected)


def lora(family):
    """Adapters that add nothing yet."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["in_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(tiny_model(family), config).eval()
    return max(far(adapted.base_model.model, family, adapted), generated(family, adapted))


def ddp(family, **options):
    model = tiny_model(family)
    one_rank()
    return far(model, family, DistributedDataParallel(model, **options))


def fsdp2(family):
    model = tiny_model(family)
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(fully_shard(model, mesh=one_rank()), family)


def ways(families=FAMILIES, *, compiles=("Bamba",)):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Of the models; the first goes all ways.
        compiles: Those that are compiled.
    """
    for family in families:
        yield f"{family}, generated", partial(generated, family)
        yield f"{family}, generated from embeddings", partial(embeddings, family)
        yield f"{family}, beam search", partial(beams, family)
        yield f"{family}, padded on the left", partial(padded, family, 1)
        yield f"{family}, padded on the left beside another", partial(padded, family, 2)
        yield f"{family}, by keyword", lambda family=family: far(tiny_model(family), family)
        yield (
            f"{family}, called by position",
            lambda family=family: far(tiny_model(family), family, step=by_position),
        )
        yield f"{family}, two caches", partial(twice, family)
        yield f"{family}, a cache of a derived class", partial(cache_of_a_subclass, family)
        yield f"{family}, StaticCache", partial(refused, family, "StaticCache")
        yield f"{family}, DynamicCache", partial(refused, family, "DynamicCache")
        yield f"{family}, training with use_cache", partial(training, family)
        yield f"{family}, packed rows before", partial(packed, family)
    yield "GraniteMoeHybrid, patches in each order", partial(in_orders, "GraniteMoeHybrid")
    main = families[0]
    yield "deepcopy", lambda: far(copy.deepcopy(tiny_model(main)), main)
    yield "deepcopy of the cache", partial(copied_cache, main, copy.deepcopy)
    yield "pickle", lambda: far(pickle.loads(pickle.dumps(tiny_model(main))), main)
    yield "pickle of the cache", partial(copied_cache, main, lambda cache: pickle.loads(pickle.dumps(cache)))
    yield "subclass", partial(subclass, main, own_forward=False)
    yield "subclass with a forward", partial(subclass, main, own_forward=True)
    yield "autocast", partial(under_autocast, main)
    yield "LoRA", partial(lora, main)
    yield "FSDP2", partial(fsdp2, main)
    yield "DDP", partial(ddp, main)
    yield "DDP find_unused_parameters", partial(ddp, main, find_unused_parameters=True)
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, main, **settings)
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", partial(under_checkpointing, main, how)
    for family in compiles:
        yield f"{family}, compile eager", partial(compiled, family, "eager")
        yield f"{family}, compile aot_eager", partial(compiled, family, "aot_eager")
