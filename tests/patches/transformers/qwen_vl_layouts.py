"""Checkpoints of a tiny Qwen2-VL and Qwen2.5-VL in every layout that there is, loaded and saved on one release.

    python qwen_vl_layouts.py

Prints what was lost on the way, as (vision tower, everything else), the layouts that were written, and what the lookup
answers to all other names.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import conversion_mapping
from transformers.conversion_mapping import get_checkpoint_conversion_mapping as copied_by_name

import nrl_patches
from nrl_patches.patches.transformers import _qwen_vl
from nrl_patches.patches.transformers._quiet import quiet

LOOKUP = "get_checkpoint_conversion_mapping"


def mixed_name(name):
    return name if "visual." in name else _qwen_vl.hub_name(name)


def layout(folder):
    """The prefixes that tell a layout, and how many tensors have each."""
    counts = {}
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                for prefix in ("model.visual", "model.language_model", "visual", "language_model", "model", "lm_head"):
                    if name.startswith(f"{prefix}."):
                        counts[prefix] = counts.get(prefix, 0) + 1
                        break
                else:
                    counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + 1
    return counts


def lost(kind, folder, expected):
    below = "" if kind.__name__.endswith("Generation") else "model."
    return _qwen_vl.count_lost(kind.from_pretrained(folder).state_dict(), expected, below=below)


def family(name, folder):
    model = _qwen_vl.tiny_model(name)
    head, base = type(model), type(model.model)
    found = {}
    for label, rename in (("hub", _qwen_vl.hub_name), ("mixed", mixed_name), ("modules", str)):
        (folder / label).mkdir()
        expected = _qwen_vl.save_sharded(model, folder / label, rename=rename)
        found[label] = {"head": lost(head, folder / label, expected), "base": lost(base, folder / label, expected)}
    found["auto"] = type(transformers.AutoModel.from_pretrained(folder / "hub")) is base
    found["of"] = sum("visual." in n for n in expected), sum("visual." not in n for n in expected)
    writers = {
        "fresh": model,
        "head": head.from_pretrained(folder / "hub"),
        "base": base.from_pretrained(folder / "hub"),
    }
    found["saved"], found["read_again"] = {}, {}
    for label, writer in writers.items():
        out = folder / f"{label}.out"
        writer.save_pretrained(out)
        found["saved"][label] = layout(out)
        own = {(n if label != "base" else f"model.{n}"): t for n, t in writer.state_dict().items()}
        found["read_again"][label] = lost(type(writer), out, own)
        shutil.rmtree(out)
    tied = _qwen_vl.tiny_model(name, tied=True)
    (folder / "tied").mkdir()
    found["tied"] = lost(head, folder / "tied", _qwen_vl.save_sharded(tied, folder / "tied"))
    return found


def shown(rules):
    return rules if rules is None else [(type(r).__name__, r.source_patterns, r.target_patterns) for r in rules]


def answers(names):
    lookup = getattr(conversion_mapping, LOOKUP)
    return {name: shown(lookup(name)) for name in names}


def all_names():
    auto = transformers.models.auto.modeling_auto
    mappings = [value for name, value in vars(auto).items() if name.endswith("MAPPING_NAMES")]
    values = [value for mapping in mappings for value in mapping.values()]
    classes = {name for value in values for name in ([value] if isinstance(value, str) else value)}
    types = {model_type for mapping in mappings for model_type in mapping}
    return types | classes | set(_qwen_vl.registered_rules()) | {"no such model"}


def lookups():
    """What the patch changes, against the same release without it."""
    names = sorted(map(str, all_names()))
    lookup = getattr(conversion_mapping, LOOKUP)
    reached = copied_by_name is lookup
    present, registry = answers(names), conversion_mapping._checkpoint_conversion_mapping_cache
    entries = dict(registry)
    with nrl_patches.undo():
        pristine, undone = answers(names), getattr(conversion_mapping, LOOKUP)
        undone_in_copy = copied_by_name is undone
    changed = [name for name in names if present[name] != pristine[name]]
    twice = [conversion_mapping.get_checkpoint_conversion_mapping(name) for name in changed for _ in range(2)]
    return {
        "names": len(names),
        "changed": changed,
        "replaced": lookup is not undone,
        "copy_reached": reached,
        "copy_undone": undone_in_copy,
        "registry_kept": all(registry[key] is rules for key, rules in entries.items())
        and len(registry) == len(entries),
        "fresh": len({id(rule) for rules in twice for rule in rules}) == sum(map(len, twice)),
    }


def own_rules():
    """What a user registers is answered as it is."""
    rule = conversion_mapping.WeightRenaming(source_patterns="^visual", target_patterns="model.visual")
    kept = {}
    for name in ("qwen2_vl", "Qwen2VLModel"):
        conversion_mapping.register_checkpoint_conversion_mapping(name, [rule], overwrite=True)
        kept[name] = answers([name])[name] == shown([rule])
    return all(kept.values())


def lora(folder):
    """A LoRA adapter, saved and loaded by PEFT."""
    import peft

    (folder / "lora").mkdir()
    model = _qwen_vl.tiny_model()
    _qwen_vl.save_sharded(model, folder / "lora")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False)
    adapted = peft.get_peft_model(type(model).from_pretrained(folder / "lora"), config)
    adapted.save_pretrained(folder / "adapter")
    again = peft.PeftModel.from_pretrained(type(model).from_pretrained(folder / "lora"), folder / "adapter")
    expected = {n: t for n, t in adapted.state_dict().items() if "lora_" in n}
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = sorted(file.keys())
    return {
        "lost": sum(not torch.equal(again.state_dict()[n], t) for n, t in expected.items()),
        "of": len(expected),
        "names": names[:1] + names[-1:],
        "merged": layout(folder / "merged"),
    }


if __name__ == "__main__":
    with quiet(), tempfile.TemporaryDirectory() as made:
        report = {"status": {i: s.state for i, s in nrl_patches.status().items() if "qwen" in i}}
        for number, kind in enumerate(_qwen_vl.HEADS):
            (Path(made) / str(number)).mkdir()
            report[kind] = family(kind, Path(made) / str(number))
        report["lookups"] = lookups()
        if transformers.utils.is_peft_available():
            report["lora"] = lora(Path(made))
        report["own_rules_kept"] = own_rules()
    print(json.dumps(report))
