"""Every way to give a model with state-space layers packed or padded rows, each against the same sequences one by one.

The reference of a release is eager, unpacked, without a mask, a cache, checkpointing or a wrapper. A way returns how
far the loss and the gradients are from the reference's: the largest relative error of a tensor.
"""

import copy
import functools
import inspect
import pickle
import sys
from functools import partial

import torch
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
from ways.packing import LABELS, LENGTHS, ONES, POSITIONS, TOKENS, call, gradients, leak_under_fsdp1, one_by_one

from nrl_patches.patches._shared import mamba_models
from nrl_patches.patches._shared.sequences_told import REFUSAL
from nrl_patches.patches._shared.state_space_models import tiny_model, without_attention

INDEX = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS]).int()
CACHES = ("cache", "cache_params", "past_key_values")
ENDS = torch.tensor((0, *(n for row in LENGTHS for n in row))).cumsum(0).int()


def build(family, attention="eager"):
    model = mamba_models.tiny_model(family) if family in mamba_models.FAMILIES else tiny_model(family, attention)
    return model.train()


@functools.cache
def reference(family):
    return one_by_one(build(family))


def far(model, family, forward=call):
    return distance(gradients(model, forward), reference(family))


def given(family, attention="eager", **how):
    return far(build(family, attention), family, partial(call, **how))


def by_keyword(family):
    """Upstream takes `seq_idx` for kernels."""
    return given(family, seq_idx=INDEX, cu_seq_lens_q=ENDS, cu_seq_lens_k=ENDS)


def by_keyword_alone(family):
    """The attention does not tell such sequences apart."""
    gaps = [0.0]
    for told in ({"seq_idx": INDEX}, {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS}):
        model = build(family)
        try:
            gaps.append(far(model, family, lambda m, how=told: m(TOKENS, labels=LABELS, use_cache=False, **how)))
        except ValueError as error:
            if "position_ids" not in str(error):
                raise
    return max(gaps)


def base_by_keyword(family):
    """The model without its head, given embeddings of a row."""
    model = build(family).eval()
    with torch.no_grad():
        inputs = model.get_input_embeddings()(TOKENS[:1])
        parts = [model.base_model(inputs_embeds=part, use_cache=False)[0] for part in inputs.split(LENGTHS[0], 1)]
        try:
            found = model.base_model(inputs_embeds=inputs, use_cache=False, seq_idx=INDEX[:1])[0]
        except ValueError as error:
            if "position_ids" not in str(error):
                raise
            return 0.0
        except TypeError as error:  # Where it takes no keyword that it does not know.
            if "unexpected keyword argument 'seq_idx'" not in str(error):
                raise
            return 0.0
    return distance({"states": found}, {"states": torch.cat(parts, 1)})


def one_by_keyword(family):
    """A row of one sequence, and of which that is said."""
    model = build(family).eval()
    row = TOKENS[:1]
    told = {"seq_idx": torch.zeros_like(row).int(), "cu_seq_lens_q": torch.tensor([0, row.shape[1]]).int()}
    with torch.no_grad():
        found, expected = (model(row, use_cache=False, **how).logits for how in (told, {}))
    return distance({"logits": found}, {"logits": expected})


def by_position(family):
    model = build(family)
    names = list(inspect.signature(model.forward).parameters)
    given = {"input_ids": TOKENS, "attention_mask": ONES, "position_ids": POSITIONS, "use_cache": False}
    last = max(names.index(name) for name in given if name in names and name != "use_cache")
    rest = {name: value for name, value in given.items() if name not in names[: last + 1]}
    logits = model(*(given.get(name) for name in names[: last + 1]), **rest).logits
    loss = model.loss_function(logits, LABELS, model.config.vocab_size)
    loss.backward()
    return distance({"loss": loss.detach(), **collected(model)}, reference(family))


def padded(family, *, left, batch):
    """Rows that are padded, the first alone or beside the second."""
    model = build(family).eval()
    tokens, mask = TOKENS[:batch].clone(), ONES[:batch].clone()
    mask[0, slice(3) if left else slice(-3, None)] = 0
    real = slice(3, None) if left else slice(-3)
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[0, real]
        expected = model(input_ids=tokens[:1, real], use_cache=False).logits[0]
    return distance({"logits": found}, {"logits": expected})


def packed_between_padding(family):
    """A row that is padded on the left, between its sequences and on the right, beside one that is not packed."""
    model = build(family).eval()
    parts = ((2, False), (3, True), (1, False), (2, True), (2, False))
    mask = torch.cat([torch.full((n,), int(real)) for n, real in parts])[None]
    positions = torch.cat([torch.arange(n) * int(real) for n, real in parts])[None]
    tokens, plain_row = TOKENS[:1], torch.arange(10)[None]
    with torch.no_grad():
        found = model(
            input_ids=torch.cat([tokens, tokens]),
            attention_mask=torch.cat([mask, ONES[:1]]),
            position_ids=torch.cat([positions, plain_row]),
            use_cache=False,
        ).logits
        alone = [model(input_ids=tokens[:, here], use_cache=False).logits[0] for here in (slice(2, 5), slice(6, 8))]
        whole = model(input_ids=tokens, use_cache=False).logits[0]
    pieces = {"first": found[0, 2:5], "second": found[0, 6:8], "whole": found[1]}
    return distance(pieces, {"first": alone[0], "second": alone[1], "whole": whole})


def counted(model, begin, end):
    """What models without positions want on top of a cache, up to 5.3.0."""
    names = inspect.signature(model.forward).parameters
    told = "cache_position" in names and "position_ids" not in names
    return {"cache_position": torch.arange(begin, end)} if told else {}


def goes_on(family, batch=2):
    """Decode a token after packed rows: it belongs to the last sequence of each. Attention adds nothing here."""
    model = without_attention(build(family)).eval()
    ends = [row[-1] for row in LENGTHS][:batch]
    token = torch.full((batch, 1), 7)
    with torch.no_grad():
        packed = model(input_ids=TOKENS[:batch], position_ids=POSITIONS[:batch], use_cache=True)
        name = next((name for name in CACHES if getattr(packed, name, None) is not None), None)
        if name is None:  # These make no cache but in `generate`.
            return 0.0
        how = {name: getattr(packed, name), **counted(model, 10, 11)}
        found = model(input_ids=token, position_ids=torch.tensor(ends)[:, None], use_cache=True, **how).logits[:, -1]
        expected = [
            model(input_ids=torch.cat([TOKENS[row, -n:], token[row]])[None], use_cache=False).logits[:, -1]
            for row, n in enumerate(ends)
        ]
    return distance({"logits": found}, {"logits": torch.cat(expected)})


def on_top(family):
    """Packed rows on top of earlier tokens, with a mask of all of them and without one."""
    model, found = build(family).eval(), {}
    for mask in (ONES, None):
        with torch.no_grad():
            earlier = model(input_ids=TOKENS[:, :3], use_cache=True)
            name = next((name for name in CACHES if getattr(earlier, name, None) is not None), None)
            if name is None:  # These make no cache but in `generate`.
                return 0.0
            how = {"attention_mask": mask, "position_ids": POSITIONS[:, 3:], name: getattr(earlier, name)}
            how |= counted(model, 3, 10)
            found[mask is None] = {"logits": model(input_ids=TOKENS[:, 3:], use_cache=True, **how).logits}
    return distance(found[False], found[True])


def padded_on_top(family):
    """New tokens that are padded, on top of a cache: positions stand still there, and no sequence begins."""
    model = build(family).eval()
    mask = ONES.clone()
    mask[1, 6:8] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = model(input_ids=TOKENS, attention_mask=mask, position_ids=positions).logits[:, -1]
        earlier = model(
            input_ids=TOKENS[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6], use_cache=True
        )
        name = next(name for name in CACHES if getattr(earlier, name, None) is not None)
        how = {"attention_mask": mask, "position_ids": positions[:, 6:], name: getattr(earlier, name)}
        found = model(input_ids=TOKENS[:, 6:], use_cache=True, **how).logits[:, -1]
    return distance({"logits": found}, {"logits": whole})


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
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=one_rank())
    return far(fully_shard(model, mesh=one_rank()), family)


def lora(family, checkpointing):
    """The gradient of B at B = 0 follows from that of the weight: it is dW @ A.T, times the scale, which is 1.

    PEFT refuses the other linear layers of a mixer, which kernels read past their module.
    """
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
    """Two steps of the Trainer, against the same one by one."""
    columns = {"input_ids": TOKENS, "attention_mask": ONES, "position_ids": POSITIONS, "labels": LABELS}
    model = build(family)
    # The Trainer drops what the forward of a model does not name.
    named = "position_ids" in inspect.signature(model.forward).parameters
    steps = trainer_steps(model, columns, 2, remove_unused_columns=named, **arguments)
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
    return far(build(family), family, lambda model: model(**batch))


def under_autocast(family, checkpointing):
    """Against the same sequences one by one under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        expected = one_by_one(build(family))
        found = gradients(checkpointed(build(family), checkpointing))
    flat = [torch.cat([g[n].float().flatten() for n in sorted(expected)]) for g in (found, expected)]
    return max(0.0, ((flat[0] - flat[1]).norm() / flat[1].norm()).item() - 2e-2)


def compiled(family, backend):
    """Rows that are not packed are as uncompiled; packed ones are right, or are refused."""
    torch._dynamo.reset()
    model = build(family)
    forward = torch.compile(model, backend=backend, fullgraph=True)
    single = {"input_ids": TOKENS, "position_ids": torch.arange(10).expand(2, -1), "labels": LABELS, "use_cache": False}
    expected = gradients(build(family), lambda model: model(**single))
    gap = distance(gradients(model, lambda _: forward(**single)), expected)
    try:
        return max(gap, far(model, family, lambda _: call(forward)))
    except RuntimeError as error:
        if REFUSAL not in str(error):
            raise
        return gap


def compiled_generation(family):
    """Decode with the cache of fixed size under which ``generate`` compiles each step, and without compiling."""
    from transformers import CompileConfig

    model = build(family).eval()
    settings = CompileConfig(backend="eager", fullgraph=True, dynamic=False)
    settings._compile_all_devices = True
    options = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static", "compile_config": settings}
    prompt = TOKENS[:, :7]
    found = {}
    for stance in ("force_eager", "default"):
        torch._dynamo.reset()
        with torch.compiler.set_stance(stance):
            steps = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                return_dict_in_generate=True,
                output_logits=True,
                **options,
            ).logits
        found[stance] = {"logits": torch.stack(steps)}
    return distance(found["default"], found["force_eager"])


COMPILED = (("eager", "NemotronH"), ("aot_eager", "NemotronH"), ("aot_eager", "FalconH1"), ("inductor", "Lfm2"))
"""Backends, and the family that each compiles."""


def ways(families=("Bamba",), *, compiles=COMPILED, keywords=True):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Of the models that the release has; the first goes all ways.
        compiles: What is compiled, as in ``COMPILED``.
        keywords: Whether the layers of all families are given the keyword arguments of the model.
    """
    for family in families:
        yield f"{family}, eager, a mask", partial(given, family)
        yield f"{family}, sdpa, a mask", partial(given, family, "sdpa")
        yield f"{family}, eager, neither", partial(given, family, attention_mask=None)
        yield f"{family}, sdpa, neither", partial(given, family, "sdpa", attention_mask=None)
        yield f"{family}, eager, a cache", partial(given, family, attention_mask=None, use_cache=True)
        yield f"{family}, packed between padding", partial(packed_between_padding, family)
        if keywords:
            yield f"{family}, seq_idx and positions", partial(by_keyword, family)
            yield f"{family}, seq_idx without positions", partial(by_keyword_alone, family)
            yield f"{family}, seq_idx to the model without its head", partial(base_by_keyword, family)
            yield f"{family}, seq_idx of one sequence", partial(one_by_keyword, family)
        yield f"{family}, decoding goes on", partial(goes_on, family)
        yield f"{family}, decoding goes on, one row", partial(goes_on, family, batch=1)
        yield f"{family}, packed on top of a cache", partial(on_top, family)
        masking = sys.modules.get("transformers.masking_utils")
        if family == "Mamba2" and hasattr(masking, "create_recurrent_attention_mask"):
            yield f"{family}, padded on top of a cache", partial(padded_on_top, family)
        for left in (True, False):
            for batch in (1, 2):
                side = "left" if left else "right"
                yield (
                    f"{family}, padded on the {side}, batch of {batch}",
                    partial(padded, family, left=left, batch=batch),
                )
    main = families[0]
    yield "called by position", partial(by_position, main)
    yield "DataCollatorWithFlattening", partial(flattened, main)
    yield "deepcopy", lambda: far(copy.deepcopy(build(main)), main)
    yield "pickle", lambda: far(pickle.loads(pickle.dumps(build(main))), main)
    yield "subclass", partial(subclass, main)
    yield "mixers under FSDP1", lambda: leak_under_fsdp1(build(main))
    for label, settings in TRAINER.items():
        yield f"Trainer, {label}", partial(trained, main, **settings)
    for how in CHECKPOINTING:
        yield f"checkpointing {how}", lambda how=how: far(checkpointed(build(main), how), main)
        yield f"LoRA, checkpointing {how}", partial(lora, main, how)
        yield f"autocast, checkpointing {how}", partial(under_autocast, main, how)
        yield f"FSDP2, checkpointing {how}", partial(fsdp2, main, how)
        yield f"DDP, checkpointing {how}", partial(ddp, main, how)
        yield f"DDP find_unused_parameters, checkpointing {how}", partial(ddp, main, how, find_unused_parameters=True)
    for backend, family in compiles:
        yield f"compile {backend} fullgraph, {family}", partial(compiled, family, backend)
    for family in sorted({family for backend, family in compiles if backend != "inductor"}):
        yield f"compile eager fullgraph, {family}, generate", partial(compiled_generation, family)
