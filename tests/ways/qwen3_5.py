"""Every way to load and save a Qwen3.5 checkpoint with transformers; a way returns what part got lost."""

import copy
import functools
import pickle
import tempfile
from functools import partial
from pathlib import Path

from safetensors import safe_open

from nrl_patches.patches._shared import qwen3_5
from nrl_patches.patches._shared.quiet import quiet


@functools.cache
def checkpoint(family, release):
    """Write a checkpoint as a release does, once; return its folder and its tensors by the names of the modules."""
    folder = Path(tempfile.mkdtemp(prefix="nrl-patches-ways-"))
    return folder, qwen3_5.write(release, qwen3_5.tiny_model(family), folder)


def lost(model, family):
    """The part of the tensors that differ in a bit."""
    _, expected = checkpoint(family, "hub")
    return qwen3_5.lost(model, expected) / len(model.state_dict())


def auto(name, _):
    import transformers

    return getattr(transformers, name)


def subclass(family):
    kind = qwen3_5.head(family)
    return type(f"My{kind.__name__}", (kind,), {})


def loaded(family, release, loader):
    folder, _ = checkpoint(family, release)
    return lost(loader(family).from_pretrained(folder), family)


def told(family, release):
    """What users are saved by is the report of missing keys: nothing of a whole checkpoint may be in it."""
    folder, _ = checkpoint(family, release)
    _, info = qwen3_5.head(family).from_pretrained(folder, output_loading_info=True)
    return float(bool(info["missing_keys"] or info["unexpected_keys"]))


def dispatched(family):
    folder, _ = checkpoint(family, "5.4.0")
    model = qwen3_5.head(family).from_pretrained(pretrained_model_name_or_path=str(folder), device_map="cpu")
    return lost(model, family)


def saved(family, release, kind, change):
    """Load, change into another object of the same weights, save; return the part of the hub's names that is missing.

    What splits the experts may be saved with split ones, as by the releases that know which rules were used.
    """
    folder, expected = checkpoint(family, release)
    with tempfile.TemporaryDirectory() as out:
        change(kind(family).from_pretrained(folder)).save_pretrained(out)
        with safe_open(Path(out) / "model.safetensors", "pt") as file:
            names = set(file.keys())
        wanted = set(expected if release == "hub" else qwen3_5.saved_by("5.3.0", expected))
        missing = min(len(set(want) - names) / len(want) for want in (wanted, expected))
        return missing + lost(qwen3_5.head(family).from_pretrained(out), family)


def same(model):
    return model


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def merged(model):
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, config).merge_and_unload()


def quietly(way):
    with quiet():
        return way()


def ways():
    """Yield the name of each way and the function that goes it."""
    loaders = {
        "the class with the head": qwen3_5.head,
        "AutoModel": partial(auto, "AutoModel"),
        "AutoModelForCausalLM": partial(auto, "AutoModelForCausalLM"),
        "AutoModelForImageTextToText": partial(auto, "AutoModelForImageTextToText"),
        "a subclass": subclass,
    }
    for family in qwen3_5.FAMILIES:
        for release in ("hub", *qwen3_5.SAVED_BY):
            start = f"{family} of {release}"
            for name, loader in loaders.items():
                yield f"{start} by {name}", partial(quietly, partial(loaded, family, release, loader))
            yield f"{start}, the report", partial(quietly, partial(told, family, release))
            again = partial(saved, family, release, qwen3_5.head)
            yield f"{start}, saved", partial(quietly, partial(again, change=same))
        start = f"{family} of hub"
        again = partial(saved, family, "hub", qwen3_5.head)
        yield f"{family} by keyword and device_map", partial(quietly, partial(dispatched, family))
        yield f"{start} deepcopy, saved", partial(quietly, partial(again, change=copy.deepcopy))
        yield f"{start} pickle, saved", partial(quietly, partial(again, change=pickled))
        yield f"{start} LoRA, merged and saved", partial(quietly, partial(again, change=merged))
        yield (
            f"{start} saved by a subclass",
            partial(quietly, partial(saved, family, "hub", subclass, change=same)),
        )
