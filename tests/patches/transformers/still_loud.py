"""What transformers and PEFT tell of a Qwen-VL checkpoint or adapter that is wrong, without the patches and with.

    python still_loud.py

The checkpoints have the layout of the hub and that of the modules. The adapters have the names of today, and those from
before transformers 4.52.
"""

import itertools
import json
import tempfile
from functools import partial
from pathlib import Path

import peft
import torch
import transformers
from patches.checkpoints import damaged
from patches.told import by_side
from safetensors.torch import load_file, save_file

from nrl_patches.patches._shared import qwen_vl_rules

HEAD = transformers.Qwen2VLForConditionalGeneration
LOADERS = {"head": HEAD, "subclass": type("Mine", (HEAD,), {}), "base": transformers.AutoModel}
LAYOUTS = {"hub": qwen_vl_rules.hub_name, "modules": str}
KINDS = ("names a tensor otherwise", "has a tensor of another shape")
PARTS = ("visual.blocks.0", "q_proj")

PREFIX = "base_model.model."
ADAPTERS = {
    "old": lambda name, tensor: {old_name(name): tensor},
    "of another model": lambda name, tensor: {f"{PREFIX}transformer.h.{name.removeprefix(PREFIX)}": tensor},
    "without PEFT's prefix": lambda name, tensor: {name.removeprefix(PREFIX): tensor},
    "of both names": lambda name, tensor: {name: tensor, old_name(name): tensor + 1},
}
"""What becomes of a tensor that has the name of today; what but the first is not for the patch to repair."""


def old_name(name):
    return PREFIX + qwen_vl_rules.hub_name(name.removeprefix(PREFIX))


def loaded(loader, folder):
    """Return what transformers itself says about the keys, under the names of the model with the head."""
    _, found = LOADERS[loader].from_pretrained(folder, output_loading_info=True)
    below = "model." if loader == "base" else ""
    return {
        kind: sorted(below + (key if isinstance(key, str) else key[0]) for key in found[kind])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }


def adapted(folder):
    """Load an adapter by PEFT; return which of its tensors are not those of the first."""
    model = peft.PeftModel.from_pretrained(qwen_vl_rules.tiny_model(), folder)
    right = load_file(folder.parent / "adapter new" / "adapter_model.safetensors")
    found = {name.replace(".default", ""): tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    return sorted(name for name, tensor in right.items() if not torch.equal(found[name], tensor))


def added(folder):
    """Load a second one; return what the loading finds of its keys."""
    model = peft.PeftModel.from_pretrained(qwen_vl_rules.tiny_model(), folder.parent / "adapter new")
    found = model.load_adapter(folder, "again")
    return {"missing": sorted(k for k in found.missing_keys if "again" in k), "unexpected": found.unexpected_keys}


def make_checkpoints(made):
    for layout, rename in LAYOUTS.items():
        folder = made / layout
        folder.mkdir()
        qwen_vl_rules.save_sharded(qwen_vl_rules.tiny_model(), folder, files=2, rename=rename)
        for damage, part in itertools.product(KINDS, PARTS):
            damaged(folder, made / f"{layout} {damage}, {part}", damage, part)


def changed_adapter(folder, out, change):
    out.mkdir()
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = {new: tensor for name in tensors for new, tensor in change(name, tensors[name]).items()}
    save_file(changed, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())


def make_adapters(made):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "qkv"], init_lora_weights=False)
    new, old = made / "adapter new", made / "adapter old"
    peft.get_peft_model(qwen_vl_rules.tiny_model(), config).save_pretrained(new)
    settings = json.loads((new / "adapter_config.json").read_text())
    (new / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": True}))
    for label, change in ADAPTERS.items():
        changed_adapter(new, made / f"adapter {label}", change)
    for folder, damage, part in itertools.product((new, old), KINDS, ("qkv", "q_proj")):
        damaged(folder, made / f"{folder.name} {damage}, {part}", damage, f"{part}.lora_B")


def cases(made):
    for loader, layout in itertools.product(LOADERS, LAYOUTS):
        for damage, part in itertools.product(KINDS, PARTS):
            call = partial(loaded, loader, made / f"{layout} {damage}, {part}")
            yield f"{loader}: {layout} {damage}, {part}", call
    adapters = ["adapter new", *(f"adapter {label}" for label in ADAPTERS)]
    adapters += [f"{a} {d}, {p}" for a, d, p in itertools.product(adapters[:2], KINDS, ("qkv", "q_proj"))]
    for adapter in adapters:
        yield f"PeftModel: {adapter}", partial(adapted, made / adapter)
        yield f"load_adapter: {adapter}", partial(added, made / adapter)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoints(Path(folder))
        make_adapters(Path(folder))
        print(json.dumps(by_side(partial(cases, Path(folder)))))
