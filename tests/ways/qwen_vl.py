"""Every way to load and save a Qwen2-VL or Qwen2.5-VL checkpoint with transformers; a way returns what part got lost.

Adapters have the names of the modules that they were made for: those from before transformers 4.52 lack
``language_model``, as the hub's checkpoints do.
"""

import contextlib
import copy
import functools
import io
import json
import pickle
import tempfile
from functools import partial
from pathlib import Path

import torch

from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

LORA = ["q_proj", "v_proj", "qkv"]


@functools.cache
def checkpoint(family):
    """Write a checkpoint in the hub's layout, once; return its folder and its tensors by the names of the modules."""
    folder = Path(tempfile.mkdtemp(prefix="nrl-patches-ways-"))
    return folder, qwen_vl_rules.save_sharded(qwen_vl_rules.tiny_model(family), folder)


def lost(model, family):
    """The part of the tensors that differ in a bit."""
    _, expected = checkpoint(family)
    below = "" if hasattr(model, "lm_head") else "model."
    total = sum(name.startswith(below) for name in expected)
    return sum(qwen_vl_rules.count_lost(model.state_dict(), expected, below=below)) / total


def head(family):
    import transformers

    return getattr(transformers, qwen_vl_rules.HEADS[family])


def base(family):
    from transformers import AutoModel

    return AutoModel._model_mapping[head(family).config_class]


def renamed(kind):
    return type(f"My{kind.__name__}", (kind,), {})


def loaded(family, loader):
    folder, _ = checkpoint(family)
    return lost(loader(family).from_pretrained(folder), family)


def auto(name, _):
    import transformers

    return getattr(transformers, name)


def dispatched(family):
    folder, _ = checkpoint(family)
    return lost(head(family).from_pretrained(pretrained_model_name_or_path=str(folder), device_map="cpu"), family)


def trained_again(family, change):
    """Load, change into another object of the same weights, save, load."""
    folder, _ = checkpoint(family)
    with tempfile.TemporaryDirectory() as out:
        change(head(family).from_pretrained(folder)).save_pretrained(out)
        return lost(head(family).from_pretrained(out), family)


def subclass_saved(family):
    folder, _ = checkpoint(family)
    with tempfile.TemporaryDirectory() as out:
        renamed(head(family)).from_pretrained(folder).save_pretrained(out)
        return lost(head(family).from_pretrained(out), family)


@functools.cache
def adapter(family):
    """Train nothing and save: an adapter with random weights, and what is in it."""
    import peft

    folder, _ = checkpoint(family)
    config = peft.LoraConfig(r=2, target_modules=LORA, init_lora_weights=False)
    adapted = peft.get_peft_model(head(family).from_pretrained(folder), config)
    out = Path(tempfile.mkdtemp(prefix="nrl-patches-ways-"))
    adapted.save_pretrained(out)
    return out, {name: tensor for name, tensor in adapted.state_dict().items() if "lora_" in name}


def old_adapter(family):
    """Write the same under the names that it would have had before 4.52; return the folder."""
    from safetensors.torch import load_file, save_file

    folder, _ = adapter(family)
    out = Path(tempfile.mkdtemp(prefix="nrl-patches-ways-"))
    (out / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model."
    old = {prefix + qwen_vl_rules.hub_name(name.removeprefix(prefix)): tensor for name, tensor in tensors.items()}
    assert set(old) != set(tensors)
    save_file(old, out / "adapter_model.safetensors", {"format": "pt"})
    return out


def by_peft(family, make):
    import peft

    folder, _ = checkpoint(family)
    return adapter_lost(peft.PeftModel.from_pretrained(head(family).from_pretrained(folder), make(family)), family)


def by_transformers(family, make):
    folder, _ = checkpoint(family)
    model = head(family).from_pretrained(folder)
    model.load_adapter(str(make(family)))
    return adapter_lost(model, family)


def adapter_lost(model, family):
    _, expected = adapter(family)
    prefix = "base_model.model."
    found = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    wrong = [n for n, t in expected.items() if not torch.equal(found[n.removeprefix(prefix)], t)]
    return len(wrong) / len(expected)


@functools.cache
def incomplete(family):
    """Write the checkpoint without a tensor of the text and one of the tower; return the folder and their names."""
    from safetensors.torch import load_file, save_file

    folder, expected = checkpoint(family)
    out = Path(tempfile.mkdtemp(prefix="nrl-patches-ways-"))
    left_out = [
        next(n for n in expected if part in n and n.endswith(".weight")) for part in ("language_model", "visual")
    ]
    hub = {qwen_vl_rules.hub_name(name) for name in left_out}
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            save_file({n: t for n, t in load_file(file).items() if n not in hub}, out / file.name, {"format": "pt"})
        else:
            (out / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    index = out / "model.safetensors.index.json"
    listed = json.loads(index.read_text(encoding="utf-8"))
    listed["weight_map"] = {n: file for n, file in listed["weight_map"].items() if n not in hub}
    index.write_text(json.dumps(listed), encoding="utf-8")
    return out, left_out


def untold(family, loader):
    """What unpatched users are saved by is the list of missing keys: what a checkpoint lacks must still be in it."""
    folder, left_out = incomplete(family)
    _, told = loader(family).from_pretrained(folder, output_loading_info=True)
    return float(
        {name.removeprefix("model.") for name in told["missing_keys"]} != {n.removeprefix("model.") for n in left_out}
    )


def quietly(way):
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        return way()


def ways():
    """Yield the name of each way and the function that goes it."""
    loaders = {
        "the class with the head": head,
        "the class without a head": base,
        "AutoModel": partial(auto, "AutoModel"),
        "AutoModelForImageTextToText": partial(auto, "AutoModelForImageTextToText"),
        "a subclass, with the head": lambda family: renamed(head(family)),
        "a subclass, without a head": lambda family: renamed(base(family)),
    }
    for family in qwen_vl_rules.HEADS:
        for name, loader in loaders.items():
            yield f"{family} by {name}", partial(quietly, partial(loaded, family, loader))
            yield f"{family} by {name}, of an incomplete checkpoint", partial(quietly, partial(untold, family, loader))
        for name, way in {
            "by keyword and device_map": dispatched,
            "saved by a subclass": subclass_saved,
            "deepcopy, saved": partial(trained_again, change=copy.deepcopy),
            "pickle, saved": partial(trained_again, change=lambda model: pickle.loads(pickle.dumps(model))),
            "LoRA, PeftModel": partial(by_peft, make=lambda family: adapter(family)[0]),
            "LoRA, load_adapter": partial(by_transformers, make=lambda family: adapter(family)[0]),
            "LoRA of old names, PeftModel": partial(by_peft, make=old_adapter),
            "LoRA of old names, load_adapter": partial(by_transformers, make=old_adapter),
        }.items():
            yield f"{family} {name}", partial(quietly, partial(way, family))
