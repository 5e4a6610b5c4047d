"""Every way to give a model several tokens on top of a filled cache, against one forward pass over the whole row.

The reference of a release is eager, without a cache, padding, checkpointing or a wrapper. A way returns how far the
logits are from the reference's, or the loss and the gradients if it trains: the largest relative error of a tensor.
"""

import copy
import functools
import importlib
import inspect
import itertools
import pickle
import sys
from functools import partial
from unittest import mock

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from ways.kv_sharing import CHECKPOINTING, RATE, TRAINER, checkpointed, collected, distance, one_rank, trainer_steps

import nrl_patches
from nrl_patches.patches._shared import filled_cache, linear_attention_models, selective_scan
from nrl_patches.patches._shared.state_space_models import without_attention
from nrl_patches.patches.transformers.mamba2_head_groups import FAMILIES as MAMBA_2

SCAN, LAYERS = "transformers.selective_scan_starts_over", "transformers.hybrid_layers_start_over"
WITHOUT_ATTENTION = ("Mamba", "FalconMamba", "Mamba2")
DELTA_NETS = {prefix: family for family, prefix in linear_attention_models.FAMILIES.items()}
ENDS = (5, 7, 11, 12)
"""Of the parts of a row: one is shorter than the convolution, and the last is a single token."""

SEVERAL = (5, 7, 12)
"""The same without a single token."""

PROMPT, NEW = ENDS[0], 3
TOKENS = torch.randint(3, 64, (2, ENDS[-1]), generator=torch.Generator().manual_seed(5))
ONES = torch.ones_like(TOKENS)
STEP = {"input_ids": TOKENS, "attention_mask": ONES, "labels": TOKENS}
GENERATED = {
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
    "eos_token_id": None,
    "max_new_tokens": NEW,
}


def tiny_model(family):
    if family in DELTA_NETS:
        return linear_attention_models.tiny_model(DELTA_NETS[family])
    without_kernels = {"use_mamba_kernels": False} if family == "Zamba" else {}
    return filled_cache.tiny_model(family, **MAMBA_2.get(family, {}), **without_kernels)


def cache_name(model):
    names = inspect.signature(model.forward).parameters
    return next(name for name in filled_cache.CACHES if name in names)


def empty_cache(model, batch):
    """Return a cache of the model's own kind, which releases before 5.5 do not make in its forward; else None."""
    module = importlib.import_module(type(model).__module__)
    kinds = [kind for name, kind in vars(module).items() if name.endswith(("HybridDynamicCache", "ConvCache"))]
    kinds += [kind for name, kind in vars(module).items() if name.endswith("AttentionDynamicCache")]
    kinds += [
        kind for name, kind in vars(module).items() if name in {"Qwen3NextDynamicCache", "OlmoHybridDynamicCache"}
    ]
    if not kinds:
        return None
    sizes = {"batch_size": batch, "max_batch_size": batch, "dtype": torch.float32, "devices": ["cpu"] * 9}
    names = inspect.signature(kinds[0]).parameters
    return kinds[0](model.config, **{name: size for name, size in sizes.items() if name in names})


def logits_of(model, tokens, mask=None):
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


@functools.cache
def reference(family):
    return logits_of(tiny_model(family), TOKENS)


def arguments_of(model, cache, begin, end, rows=TOKENS):
    """The arguments of a call that reads some tokens of a row."""
    given = {"input_ids": rows[:, begin:end], cache_name(model): cache, "use_cache": True}
    names = inspect.signature(model.forward).parameters
    if "position_ids" in names:
        given["position_ids"] = torch.arange(begin, end)[None].expand(len(rows), -1)
    if "cache_position" in names:
        given["cache_position"] = torch.arange(begin, end)
    return given


def by_keyword(_, run, given):
    return run(**given)


def by_position(model, run, given):
    names = list(inspect.signature(model.forward).parameters)
    last = max(names.index(name) for name in given)
    return run(*(given.get(name) for name in names[: last + 1]))


def in_parts(model, run=None, step=by_keyword, cache=None, ends=ENDS):
    """Return the logits of rows that are read in parts, and the cache."""
    logits, begin = [], 0
    cache = empty_cache(model, len(TOKENS)) if cache is None else cache
    for end in ends:
        found = step(model, model if run is None else run, arguments_of(model, cache, begin, end))
        logits.append(found.logits)
        cache, begin = found[cache_name(model)], end
    return torch.cat(logits, 1), cache


def far(model, family, run=None, step=by_keyword, cache=None, ends=ENDS):
    """How far the logits of a model, or of what runs it, are from the reference of its family."""
    with torch.no_grad():
        logits, _ = in_parts(model, run, step, cache, ends)
    return distance({"logits": logits}, {"logits": reference(family)})


def as_without_the_patch(family, patch):
    """A first part, a single token and a row without a cache do not change by a bit."""
    model, kept = tiny_model(family), []
    for on in (True, False):
        if not on:
            nrl_patches.undo(patch)
        with torch.no_grad():
            logits, _ = in_parts(model, ends=(PROMPT, PROMPT + 1, PROMPT + 2))
        kept.append(torch.cat([logits, logits_of(model, TOKENS)], 1))
    nrl_patches.apply(patch)
    return 0.0 if torch.equal(*kept) else 1.0


def cache_afterwards(family):
    """Against the cache of a row that is read at once."""
    model = tiny_model(family)
    with torch.no_grad():
        caches = [in_parts(model, ends=ends)[1] for ends in (ENDS[:-1], ENDS[-2:-1])]
    names = ("conv_states", "recurrent_states", "keys", "values")
    states = [
        {
            f"{i} {name} {key}": state
            for (i, layer), name in itertools.product(enumerate(cache.layers), names)
            for key, state in kept(getattr(layer, name, None)).items()
        }
        for cache in caches
    ]
    assert states[0].keys() == states[1].keys()
    assert states[0]
    return max(distance({"": found}, {"": states[1][name]}) for name, found in states[0].items())


def kept(states):
    """The states of a layer by their index; releases keep one or several."""
    return {k: v for k, v in (states if isinstance(states, dict) else {0: states}).items() if v is not None}


def second_turn(family, pads=0, **how):
    """`generate` on top of the cache of an earlier `generate`, against the same without a cache."""
    model, mask = tiny_model(family), ONES[:, :PROMPT].clone()
    prompt = TOKENS[:, :PROMPT].clone()
    prompt[0, :pads], mask[0, :pads] = 0, 0
    name = cache_name(model)
    with torch.no_grad():
        first = model.generate(prompt, attention_mask=mask, **GENERATED)
        # The last token that was generated is not in the cache.
        whole = torch.cat([first.sequences, TOKENS[:, PROMPT:]], 1)
        mask = torch.cat([mask, torch.ones_like(whole[:, PROMPT:])], 1)
        seen = first.sequences.shape[1] - 1
        new = slice(seen if family in WITHOUT_ATTENTION else 0, None)
        cache = first.get(name, first.past_key_values)
        found = model.generate(whole[:, new], attention_mask=mask[:, new], **GENERATED | how | {name: cache})
        expected = model.generate(whole, attention_mask=mask, **GENERATED)
    return distance({"logits": torch.stack(found.logits)}, {"logits": torch.stack(expected.logits)})


def prefilled_in_chunks(family):
    import transformers

    model = tiny_model(family)
    cache = {cache_name(model): transformers.DynamicCache(config=model.config)}
    with torch.no_grad():
        found = model.generate(TOKENS, attention_mask=ONES, prefill_chunk_size=5, **GENERATED | cache)
        expected = model.generate(TOKENS, attention_mask=ONES, **GENERATED)
    return distance({"logits": torch.stack(found.logits)}, {"logits": torch.stack(expected.logits)})


def given_again(family):
    """A cache without a length: `generate` is told all of the conversation and reads it twice, but says so."""
    selective_scan.tell_once.cache_clear()
    model = tiny_model(family)
    name = cache_name(model)
    with torch.no_grad():
        first = model.generate(TOKENS[:, :PROMPT], **GENERATED)
        whole = torch.cat([first.sequences, TOKENS[:, PROMPT:]], 1)
        found = model.generate(whole, **GENERATED | {name: first.get(name, first.past_key_values)})
        expected = model.generate(whole, **GENERATED)
    return distance({"logits": torch.stack(found.logits)}, {"logits": torch.stack(expected.logits)})


def static(family):
    import transformers

    model = tiny_model(family)
    return far(model, family, cache=transformers.StaticCache(config=model.config, max_cache_len=ENDS[-1]))


def used_again(family):
    """A cache that was reset forgets the row before."""
    model = tiny_model(family)
    with torch.no_grad():
        _, cache = in_parts(model)
    for layer in cache.layers:
        if hasattr(layer, "recurrent_states"):
            layer.reset()
    with torch.no_grad():
        model = without_attention(model)
        found, _ = in_parts(model, cache=cache)
    return distance({"logits": found}, {"logits": logits_of(model, TOKENS)})


def in_gradients(family):
    """The gradients of a row that is read in parts; a single token writes over what those before it need."""
    found, expected = tiny_model(family), tiny_model(family)
    in_parts(found, ends=SEVERAL)[0].square().mean().backward()
    expected(input_ids=TOKENS, use_cache=False).logits.square().mean().backward()
    return distance(collected(found), collected(expected))


def after_prompt(family):
    """The gradient of tokens on top of a prompt that has none, of the last norm: no earlier token goes through it."""
    model = tiny_model(family)
    with torch.no_grad():
        _, cache = in_parts(model, ends=(PROMPT,))
    whole = model(input_ids=TOKENS, use_cache=False).logits[:, PROMPT:]
    logits = (model(**arguments_of(model, cache, PROMPT, ENDS[-1])).logits, whole)
    norm = next(w for name, w in reversed([*model.named_parameters()]) if "norm" in name and ".layers." not in name)
    found, expected = (torch.autograd.grad(each.square().mean(), norm)[0] for each in logits)
    return distance({"": found}, {"": expected})


def another_scan(family):
    """In place of upstream's scan, one that takes a kernel's arguments only, and begins with an empty state."""
    model = tiny_model(family)
    module = sys.modules[type(model).__module__]

    # The names are mamba-ssm's.
    def scan(u, delta, A, B, C, *, D, z, delta_bias, return_last_state, **_):  # noqa: N803, PLR0913
        step = torch.nn.functional.softplus(delta + delta_bias[:, None])
        state, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
        for i in range(u.shape[-1]):
            state = state * torch.exp(step[..., i, None] * A) + (step * u)[..., i, None] * B[:, None, :, i]
            outputs.append((state * C[:, None, :, i]).sum(-1) + D * u[..., i])
        output = torch.stack(outputs, -1) * torch.nn.functional.silu(z)
        return (output, state) if return_last_state else output

    with mock.patch.object(module, "mamba_selective_scan", scan):
        return far(model, family)


def packed(family):
    """Several tokens after packed rows, in attention that adds nothing: they belong to the last sequence."""
    model = without_attention(tiny_model(family)).eval()
    positions = torch.stack([torch.tensor([*range(4), *range(3)]), torch.tensor([*range(2), *range(5)])])
    how = {cache_name(model): None, "use_cache": True}
    with torch.no_grad():
        first = model(input_ids=TOKENS[:, :7], position_ids=positions, **how)
        how[cache_name(model)] = first[cache_name(model)]
        following = torch.stack([torch.arange(3, 8), torch.arange(5, 10)])
        found = model(input_ids=TOKENS[:, 7:], position_ids=following, **how).logits
    alone = [logits_of(model, TOKENS[i : i + 1, begin:])[:, 7 - begin :] for i, begin in enumerate((4, 2))]
    return distance({"logits": found}, {"logits": torch.cat(alone)})


def in_orders(family, *patches):
    """Patches of the same mixer, taken off and put back in each order."""
    gaps = []
    for off, on in itertools.product(itertools.permutations(patches), repeat=2):
        for patch in off:
            nrl_patches.undo(patch)
        for patch in on:
            nrl_patches.apply(patch)
        assert {nrl_patches.status()[patch].state for patch in patches} <= {"applied", "pending"}
        gaps += [far(tiny_model(family), family), packed(family)]
    return max(gaps)


def training(family, model=None, *, use_cache=True):
    """The loss and the gradients of a step without a cache."""
    expected, model = tiny_model(family).train(), (model or tiny_model(family)).train()
    expected(**STEP, use_cache=False).loss.backward()
    model(**STEP, use_cache=use_cache).loss.backward()
    return distance(collected(model), collected(expected))


def trained(family, **arguments):
    """Two steps of the Trainer, against the same one by one, and rows in parts after them."""
    trainee, model = tiny_model(family).train(), tiny_model(family).train()
    steps, optimizer = trainer_steps(trainee, STEP, 2, **arguments), torch.optim.SGD(model.parameters(), lr=RATE)
    gaps = []
    for found in steps:
        optimizer.zero_grad()
        model(**STEP, use_cache=False).loss.backward()
        gaps.append(distance(found, collected(model)))
        optimizer.step()
    with torch.no_grad():
        logits, _ = in_parts(trainee.eval())
    return max(*gaps, distance({"logits": logits}, {"logits": logits_of(trainee, TOKENS)}))


def under_checkpointing(family, how):
    model = checkpointed(tiny_model(family), how)
    # Torch's wrapper would have a cache read the row again when it is recomputed.
    return max(far(model.eval(), family), training(family, model, use_cache=not how.startswith("wrapped")))


def under_autocast(family):
    """Against the reference under autocast; what that rounds is not told apart."""
    model = tiny_model(family)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, expected = in_parts(model)[0].float(), logits_of(model, TOKENS).float()
    return max(0.0, ((found - expected).norm() / expected.norm()).item() - 0.15)


def bfloat16(family):
    model = tiny_model(family).bfloat16()
    with torch.no_grad():
        found, expected = in_parts(model)[0].float(), logits_of(model, TOKENS).float()
    return max(0.0, ((found - expected).norm() / expected.norm()).item() - 0.15)


def compiled(family, backend):
    torch._dynamo.reset()
    model = tiny_model(family)
    return far(model, family, torch.compile(model, backend=backend, fullgraph=True), ends=(PROMPT, ENDS[-1]))


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
    return far(model, family, renamed)


def mixer_of_a_subclass(family):
    """A mixer of a derived class, whose own forward calls the one that it has from its base."""
    model = tiny_model(family)
    mixer = next(module for module in model.modules() if hasattr(module, "A_log") or hasattr(module, "conv"))
    kind = type(mixer)

    class Derived(kind):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    mixer.__class__ = Derived
    return far(model, family)


def copied_cache(family, copy_of):
    """Read the same tokens twice, with a copy of the cache of the prompt."""
    model = tiny_model(family)
    with torch.no_grad():
        _, cache = in_parts(model, ends=(PROMPT,))
        caches = (copy_of(cache), cache)
        logits = [model(**arguments_of(model, c, PROMPT, ENDS[-1])).logits for c in caches]
    expected = {str(i): reference(family)[:, PROMPT:] for i in range(2)}
    return distance({str(i): found for i, found in enumerate(logits)}, expected)


def lora(family):
    """Adapters that add nothing yet."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["in_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(tiny_model(family), config).eval()
    return far(adapted.base_model.model, family, adapted)


def ddp(family, **options):
    model = tiny_model(family)
    one_rank()
    return far(model, family, DistributedDataParallel(model, **options))


def fsdp2(family):
    model = tiny_model(family)
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(fully_shard(model, mesh=one_rank()), family)


def ways(patch, families=("Jamba",), *, whole=True, old=False):
    """Yield the name of each way and the function that goes it.

    Args:
        patch: The patch that they are about.
        families: Of the models.
        whole: Whether the first of them goes all ways.
        old: Whether the release makes no caches in the forward of its models.
    """
    for family in families:
        yield f"{family}, by keyword", lambda family=family: far(tiny_model(family), family)
        yield (
            f"{family}, called by position",
            lambda family=family: far(tiny_model(family), family, step=by_position),
        )
        yield f"{family}, as without the patch", partial(as_without_the_patch, family, patch)
        yield f"{family}, gradients", partial(in_gradients, family)
        yield f"{family}, gradients after a prompt", partial(after_prompt, family)
        yield f"{family}, training with use_cache", partial(training, family)
        yield f"{family}, mixer of a derived class", partial(mixer_of_a_subclass, family)
        if patch == SCAN:
            yield f"{family}, another scan", partial(another_scan, family)
        if old:
            continue
        yield f"{family}, bfloat16", partial(bfloat16, family)
        yield f"{family}, second turn of generate", partial(second_turn, family)
        yield f"{family}, cache afterwards", partial(cache_afterwards, family)
        yield f"{family}, StaticCache", partial(static, family)
        yield f"{family}, a cache that was reset", partial(used_again, family)
        if family not in WITHOUT_ATTENTION:
            yield f"{family}, second turn after padding on the left", partial(second_turn, family, 2)
            yield f"{family}, prefilled in chunks", partial(prefilled_in_chunks, family)
        elif patch == SCAN:
            yield f"{family}, generate is given all again", partial(given_again, family)
    if not whole:
        return
    main = families[0]
    yield f"{main}, packed rows before", partial(packed, main)
    yield f"{main}, patches in each order", partial(in_orders, main, patch, "transformers.mamba_packed_state")
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
    yield "compile eager fullgraph", partial(compiled, families[-1], "eager")
    yield "compile aot_eager fullgraph", partial(compiled, main, "aot_eager")
