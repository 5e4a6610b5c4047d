"""Every way to train a model by accumulated batches, against its rows run alone and weighted by their tokens."""

import copy
import functools
import importlib
import os
import pickle
import tempfile
from functools import partial
from unittest import mock

import accelerate
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from ways.kv_sharing import one_rank

from nrl_patches.patches._shared import accumulation, models_without_number, two_ranks

ROWS = accumulation.rows()

SETTINGS = {
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0,
    "remove_unused_columns": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""Of the Trainer: one update, whose gradient is the difference of the weights."""

PATCHES = {
    "llama": ("trainer_divides_gradients_twice", "tiny_model"),
    "gemma3": ("gemma3_loss_ignores_token_count", "tiny_model"),
    "gemma3n": ("gemma3n_loss_ignores_token_count", "tiny_model"),
    "gemma4": ("gemma4_loss_ignores_token_count", "tiny_model"),
    "qwen2_5_vl": ("accepts_loss_kwargs_denied", "tiny_model"),
    "mamba": ("accepts_loss_kwargs_dropped", "tiny_mamba"),
    "classifier": ("accepts_loss_kwargs_dropped", "tiny_classifier"),
    "mixtral": ("router_loss_added_up", "tiny_model"),
}


BY_ROWS = ("gemma3_classifier", "segformer", "wav2vec2_ctc")
"""Of what another function takes the mean, those whose rows weigh the same, whatever their length is."""


def elsewhere(family):
    """Return what builds a model whose mean another function takes."""
    places = [importlib.import_module(f"patches.transformers.means_{name}") for name in ("elsewhere", "of_media")]
    return {build.__name__: build for place in places for build in place.MODELS}[family]


def build(family):
    if family in {"qwen2_audio", *BY_ROWS}:
        return accumulation.seeded(elsewhere(family))
    if family in {"bert", "qwen3_vl_moe"}:
        return accumulation.seeded(getattr(models_without_number, f"tiny_{family}"))
    patch, name = PATCHES[family]
    return accumulation.seeded(getattr(importlib.import_module(f"nrl_patches.patches.transformers.{patch}"), name))


def collate(family, rows):
    """Older releases count the first label of a text model, whose class says nothing wrong, in every batch alike."""
    if family in BY_ROWS:
        return importlib.import_module("patches.transformers.added_up").collate(elsewhere(family), rows)
    batch = accumulation.collate(rows)
    if family in {"llama", "mixtral"}:
        batch["labels"][:, 0] = -100
    if family == "bert":
        del batch["mm_token_type_ids"]
    return batch


def tokens(family, rows=ROWS):
    """How many tokens have a label that counts; of text, what is first in its row is not predicted."""
    if family in BY_ROWS:
        return len(rows)
    return sum(len(row) - (family not in {"bert", "classifier"}) for row in rows)


def train(family, model, *, accumulated=True, **arguments):
    """Return the Trainer after one update of all rows."""
    import transformers

    # One that has trained in half precision leaves that behind, here and in an environment variable.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    batch, steps = (1, len(ROWS)) if accumulated else (len(ROWS), 1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        settings = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=steps // ranks,
            use_cpu=True,
            dataloader_pin_memory=False,
            **SETTINGS,
            **arguments,
        )
        trainer = transformers.Trainer(
            model=model, args=settings, data_collator=partial(collate, family), train_dataset=ROWS, eval_dataset=ROWS
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.said = trainer.model_accepts_loss_kwargs
        before = weights(model)
        trainer.found_loss = trainer.train().training_loss
        trainer.found = {name: before[name] - weight for name, weight in weights(model).items()}
    return trainer


def weights(model):
    """Whole, by the names that they have where nothing is wrapped."""
    named = ((n.removeprefix("_fsdp_wrapped_module."), p) for n, p in model.named_parameters() if p.requires_grad)
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in named}


def by_tokens(family, model, *, share=None):
    """The gradient of the mean over all tokens, of rows that are run alone; or of another share of each row."""
    model.zero_grad()
    for row in ROWS:
        loss = model(**collate(family, [row])).loss
        (loss * (tokens(family, [row]) / tokens(family) if share is None else share)).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.detach().clone() for name, gradient in found.items()}


@functools.cache
def reference(family):
    return by_tokens(family, build(family))


def distance(found, expected):
    gaps = [(found[n] - expected.get(n, torch.zeros_like(found[n]))).norm() for n in found]
    return (torch.stack(gaps).norm() / torch.stack([g.norm() for g in expected.values()]).norm()).item()


def accumulated(family, model=None, **arguments):
    trainer = train(family, model or build(family), **arguments)
    assert trainer.model_accepts_loss_kwargs is trainer.said
    return distance(trainer.found, reference(family))


def reported(family):
    rows = [build(family)(**collate(family, [row])).loss.item() * tokens(family, [row]) for row in ROWS]
    return abs(train(family, build(family)).found_loss - sum(rows) / tokens(family))


def one_batch(family):
    """The loss of a router, which no weights make out of that of the rows, is what it is of the batch."""
    whole = at_once(family, build(family)) if family == "mixtral" else reference(family)
    return distance(train(family, build(family), accumulated=False).found, whole)


def at_once(family, model):
    model(**collate(family, ROWS)).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def evaluated(family):
    """The mean of the batches, as without the patch; the first label counts in older releases, where it is one."""
    trainer = train(family, build(family), eval_strategy="no")
    model = trainer.model.eval()
    with torch.no_grad():
        expected = sum(model(**collate(family, [row])).loss.item() for row in ROWS) / len(ROWS)
    return abs(trainer.evaluate()["eval_loss"] - expected)


def checkpointed(family, *, use_reentrant):
    options = {"use_reentrant": use_reentrant}
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": options}
    if family != "mixtral":
        return accumulated(family, **settings)
    # Newer releases lose the gradient of a router's loss under reentrant checkpointing, of rows alone as well.
    model = build(family)
    model.gradient_checkpointing_enable(options)
    return distance(train(family, build(family), **settings).found, by_tokens(family, model))


def compiled(family, backend):
    torch._dynamo.reset()
    return accumulated(family, torch_compile=True, torch_compile_backend=backend)


def fullgraph(family):
    """The forward by itself, with the number of tokens that the Trainer hands it."""
    torch._dynamo.reset()
    model = build(family)
    forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    batch = accumulation.collate(ROWS)
    loss = forward(**batch, num_items_in_batch=torch.tensor(2 * tokens(family))).loss
    loss.backward()
    expected = {name: gradient / 2 for name, gradient in reference(family).items()}
    return distance({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)


def lora(family):
    import peft

    def adapted():
        modules = {"mamba": ["in_proj", "x_proj"], "bert": ["query", "value"]}.get(family, ["q_proj", "v_proj"])
        config = peft.LoraConfig(r=2, target_modules=modules, init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return peft.get_peft_model(build(family), config)

    return distance(train(family, adapted()).found, by_tokens(family, adapted()))


def in_bfloat16(family):
    """What autocast rounds is the same in rows that are run alone."""
    with torch.autocast("cpu", torch.bfloat16):
        expected = by_tokens(family, build(family))
    return distance(train(family, build(family), bf16=True).found, expected)


def ranks(family):
    """Two gloo ranks of two rows each, whose tokens are counted together."""

    def rank():
        return {"far": accumulated(family, average_tokens_across_devices=True)}

    return two_ranks.run(rank)["far"]


def fsdp1(family):
    group = one_rank().get_group()
    model = FullyShardedDataParallel(build(family), group, use_orig_params=True, device_id=torch.device("cpu"))
    return accumulated(family, model)


def fsdp2(family):
    return accumulated(family, fully_shard(build(family), mesh=one_rank()))


def device_map(family):
    model = build(family)
    places = {name: "cpu" for name, _ in model.named_children()}
    return accumulated(family, accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True))


def subclass(family, *, own_loss=False):
    """One that only has another name trains as its base; one with a loss of its own, as without the patch."""
    model = build(family)
    kind = type(model)

    class Renamed(kind):
        __module__ = kind.__module__  # transformers reads the source of the module that a model's class is from.

    class OwnLoss(Renamed):
        __module__ = kind.__module__
        accepts_loss_kwargs = False

        def forward(self, *args, num_items_in_batch=None, **kwargs):
            assert num_items_in_batch is None
            return super().forward(*args, **kwargs)

    model.__class__ = OwnLoss if own_loss else Renamed
    if not own_loss:
        return accumulated(family, model)
    return distance(train(family, model).found, by_tokens(family, build(family), share=1 / len(ROWS)))


def ways(*, families="llama gemma3 gemma3n gemma4 qwen2_5_vl", compiles="llama"):
    """Yield the name of each way and the function that goes it.

    Args:
        families: Keys of ``PATCHES``, of ``BY_ROWS``, or ``qwen2_audio``, ``bert`` or ``qwen3_vl_moe``.
        compiles: Those of them that are compiled, too, which takes half a minute each; or none.
    """
    for family in families.split():
        yield from ways_of(family)
    for family in compiles.split():
        if family not in {"bert", "classifier", "mixtral", "qwen3_vl_moe"}:
            yield f"{family} compile fullgraph", partial(fullgraph, family)
        for backend in ("eager", "aot_eager", "inductor"):
            yield f"{family} compile {backend}", partial(compiled, family, backend)
    # Two ranks are forks, and want no process group before theirs.
    for family in families.split():
        yield f"{family} FSDP1", partial(fsdp1, family)
        yield f"{family} FSDP2", partial(fsdp2, family)


def ways_of(family):
    yield f"{family} Trainer", partial(accumulated, family)
    yield f"{family} Trainer, reported loss", partial(reported, family)
    yield f"{family} Trainer, one batch", partial(one_batch, family)
    yield f"{family} Trainer, evaluation", partial(evaluated, family)
    yield f"{family} checkpointing non-reentrant", partial(checkpointed, family, use_reentrant=False)
    yield f"{family} checkpointing reentrant", partial(checkpointed, family, use_reentrant=True)
    yield f"{family} LoRA", partial(lora, family)
    yield f"{family} autocast", partial(in_bfloat16, family)
    yield f"{family} DDP of two ranks", partial(ranks, family)
    yield f"{family} device map", partial(device_map, family)
    yield f"{family} deepcopy", lambda: accumulated(family, copy.deepcopy(build(family)))
    yield f"{family} pickle", lambda: accumulated(family, pickle.loads(pickle.dumps(build(family))))
    yield f"{family} subclass", partial(subclass, family)
    yield f"{family} subclass with a loss of its own", partial(subclass, family, own_loss=True)
