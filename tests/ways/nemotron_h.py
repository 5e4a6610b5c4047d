"""Every way to load and save a Nemotron-H checkpoint with transformers; a way returns what part got lost."""

import copy
import functools
import json
import pickle
import tempfile
from functools import partial
from pathlib import Path

from nrl_patches.patches._shared import nemotron_h
from nrl_patches.patches._shared.quiet import quiet

NAMES = {
    "hub": {},
    "5.3.0": {"embeddings": "embedding"},
    "modules": {"prefix": "model."},
    "5.3.0, by modules": {"embeddings": "embedding", "prefix": "model."},
    "5.3.0, no head": {"embeddings": "embedding", "prefix": ""},
}
"""The hub's layout, that which releases saved, and both without the hub's prefix."""


@functools.cache
def checkpoint(layout):
    """Write a checkpoint, once; return its folder and its tensors by the names of the modules."""
    folder = Path(tempfile.mkdtemp(prefix="nrl-patches-ways-"))
    return folder, nemotron_h.write(nemotron_h.tiny_model(), folder, **NAMES[layout])


def lost(model):
    """The part of the tensors that differ in a bit."""
    return nemotron_h.lost(model, checkpoint("hub")[1]) / len(model.state_dict())


def loader(name):
    import transformers

    return getattr(transformers, name)


def subclass():
    return type("MyNemotronH", (loader("NemotronHForCausalLM"),), {})


def loaded(layout, kind):
    return lost(kind().from_pretrained(checkpoint(layout)[0]))


def told(layout):
    """What users are saved by is the report of missing keys: nothing of a whole checkpoint may be in it."""
    head = loader("NemotronHForCausalLM")
    _, info = head.from_pretrained(checkpoint(layout)[0], output_loading_info=True)
    return float(bool(info["missing_keys"] or info["unexpected_keys"]))


def dispatched(layout):
    folder, _ = checkpoint(layout)
    head = loader("NemotronHForCausalLM")
    return lost(head.from_pretrained(pretrained_model_name_or_path=str(folder), device_map="cpu"))


def saved(kind, change, layout="hub", **options):
    """Load, change into another object of the same weights, save; return the part of the hub's names that is missing.

    What was saved is split in files, so that its names are in the index.
    """
    model = change(kind().from_pretrained(checkpoint(layout)[0]))
    own = checkpoint("hub")[1]
    head = any(name in own for name in model.state_dict())
    prefix = "backbone." if head else ""
    wanted = {n for n in nemotron_h.hub_names(own, prefix=prefix) if head or n != "lm_head.weight"}
    with tempfile.TemporaryDirectory() as out:
        model.save_pretrained(out, max_shard_size="5KB", **options)
        index = json.loads(Path(out, "model.safetensors.index.json").read_text(encoding="utf-8"))
        return len(wanted ^ set(index["weight_map"])) / len(wanted) + lost(type(model).from_pretrained(out))


def same(model):
    return model


def made(model):
    """A model that no checkpoint was read for."""
    new = type(model)(model.config)
    new.load_state_dict(model.state_dict())
    return new


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def merged(model):
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, config).merge_and_unload()


def with_its_tensors(model):
    """As FSDP's users save: the tensors are given."""
    model.save_pretrained = partial(model.save_pretrained, state_dict=model.state_dict())
    return model


def quietly(way):
    with quiet():
        return way()


def ways():
    """Yield the name of each way and the function that goes it."""
    head, base = partial(loader, "NemotronHForCausalLM"), partial(loader, "NemotronHModel")
    loaders = {
        "the class with the head": head,
        "AutoModel": partial(loader, "AutoModel"),
        "AutoModelForCausalLM": partial(loader, "AutoModelForCausalLM"),
        "a subclass": subclass,
    }
    for layout in ("hub", "5.3.0", "modules", "5.3.0, by modules"):
        for name, kind in loaders.items():
            yield f"{layout} by {name}", partial(quietly, partial(loaded, layout, kind))
        yield f"{layout}, the report", partial(quietly, partial(told, layout))
        yield f"{layout} by keyword and device_map", partial(quietly, partial(dispatched, layout))
    yield "5.3.0, no head by NemotronHModel", partial(quietly, partial(loaded, "5.3.0, no head", base))
    for layout in ("hub", "5.3.0"):
        yield f"{layout}, saved", partial(quietly, partial(saved, head, same, layout))
        yield f"{layout}, saved without a head", partial(quietly, partial(saved, base, same, layout))
    changes = {"made": made, "deepcopy": copy.deepcopy, "LoRA, merged": merged, "given": with_its_tensors}
    for name, change in changes.items():
        yield f"{name}, saved", partial(quietly, partial(saved, head, change))
    yield "made without a head, saved", partial(quietly, partial(saved, base, made))
    yield "pickle, saved", partial(quietly, partial(saved, head, pickled))
    yield "saved by a subclass", partial(quietly, partial(saved, subclass, made))
