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
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.conversion_mapping import get_checkpoint_conversion_mapping as copied_by_name

import nrl_patches
from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

LOOKUP = "get_checkpoint_conversion_mapping"


def mixed_name(name):
    return name if "visual." in name else qwen_vl_rules.hub_name(name)


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
    return qwen_vl_rules.count_lost(kind.from_pretrained(folder).state_dict(), expected, below=below)


def family(name, folder):
    model = qwen_vl_rules.tiny_model(name)
    head, base = type(model), type(model.model)
    found = {}
    for label, rename in (("hub", qwen_vl_rules.hub_name), ("mixed", mixed_name), ("modules", str)):
        (folder / label).mkdir()
        expected = qwen_vl_rules.save_sharded(model, folder / label, rename=rename)
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
    found["subclasses"] = subclasses(head, base, folder, expected)
    tied = qwen_vl_rules.tiny_model(name, tied=True)
    (folder / "tied").mkdir()
    found["tied"] = lost(head, folder / "tied", qwen_vl_rules.save_sharded(tied, folder / "tied"))
    return found


def subclasses(head, base, folder, expected):
    """What a class of the user's gets of each layout, what it writes, and which rules it has beside its base's."""

    class Mine(head):
        pass

    class MineNamedAlike(head):
        pass

    class MineWithoutHead(base):
        pass

    class MineOfMine(Mine):
        def __init__(self, config):
            super().__init__(config)
            self.model = MineWithoutHead(config)
            self.post_init()

    MineNamedAlike.__name__ = head.__name__
    kinds = {"head": Mine, "alike": MineNamedAlike, "nested": MineOfMine, "base": MineWithoutHead}
    found = {}
    for label, kind in kinds.items():
        below = "model." if label == "base" else ""
        layouts = ("hub", "mixed", "modules")
        models = {layout_name: kind.from_pretrained(folder / layout_name) for layout_name in layouts}
        states = {
            layout_name: qwen_vl_rules.count_lost(m.state_dict(), expected, below=below)
            for layout_name, m in models.items()
        }
        models["hub"].save_pretrained(folder / f"{label}.mine")
        found[label] = {**states, "saved": layout(folder / f"{label}.mine")}
    found["sharded"] = sharded(head, folder)
    return found


def sharded(head, folder):
    """The layout that the class writes which ``fully_shard`` gives a model."""
    model = head(head.config_class.from_pretrained(folder / "hub"))
    model.__class__ = type(f"FSDP{head.__name__}", (head,), {})
    model.save_pretrained(folder / "sharded")
    return layout(folder / "sharded")


def other_families():
    """Whether a subclass has the rules of its base: by class, by type, by none since it is built in another way."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=4, patch_size=2))
    mixtral = transformers.MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=2, vocab_size=8)
    moe, rebuilt = transformers.MixtralModel(mixtral), transformers.MixtralModel(mixtral)
    rebuilt.layers[0].block_sparse_moe = torch.nn.Linear(1, 1)  # a name that the rules know from the hub
    found = {}
    for label, model in {"ViT": vit, "Mixtral": moe, "rebuilt": rebuilt}.items():
        native = ask(model)
        model.__class__ = type("Mine", (type(model),), {})
        found[label] = "as its base" if ask(model) == native else "none" if not ask(model) else "others"
        found[f"{label} left as it was"] = "is_custom_code" not in vars(model)
    return found


def registered(name):
    """What a subclass of Qwen2-VL gets once the user has registered a rule under a name."""
    model = qwen_vl_rules.tiny_model()
    model.__class__ = type("MineToo", (type(model),), {})
    rule = conversion_mapping.WeightRenaming(source_patterns="^theirs", target_patterns="ours")
    conversion_mapping.register_checkpoint_conversion_mapping(name, [rule])
    try:
        return shown([rule])[0] in ask(model) and not any("^visual" in rule[1] for rule in ask(model))
    finally:
        del conversion_mapping._checkpoint_conversion_mapping_cache[name]
        getattr(conversion_mapping, "USER_REGISTERED_MAPPINGS", set()).discard(name)


def ask(model):
    return shown(conversion_mapping.get_model_conversion_mapping(model=model, key_mapping=None, add_legacy=False))


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
    return types | classes | set(qwen_vl_rules.registered_rules()) | {"no such model"}


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
    """What a user registers is answered as it is, also where it leaves the tower alone or takes it away."""
    kept = {}
    for pattern, target in (("^visual", "model.visual"), ("^theirs", "ours"), ("^model", "language_model")):
        rule = conversion_mapping.WeightRenaming(source_patterns=pattern, target_patterns=target)
        for name in ("qwen2_vl", "Qwen2VLModel"):
            conversion_mapping.register_checkpoint_conversion_mapping(name, [rule], overwrite=True)
            kept[name, pattern] = answers([name])[name] == shown([rule])
    return all(kept.values())


def save_with_old_names(adapter, folder):
    """Write an adapter again as transformers before 4.52 named its tensors."""
    folder.mkdir()
    prefix = "base_model.model."
    tensors = load_file(adapter / "adapter_model.safetensors")
    old = {prefix + qwen_vl_rules.hub_name(name.removeprefix(prefix)): tensor for name, tensor in tensors.items()}
    save_file(old, folder / "adapter_model.safetensors", {"format": "pt"})
    shutil.copy(adapter / "adapter_config.json", folder)
    return folder


def lora(folder):
    """A LoRA adapter, saved and loaded by PEFT."""
    import peft

    (folder / "lora").mkdir()
    model = qwen_vl_rules.tiny_model()
    qwen_vl_rules.save_sharded(model, folder / "lora")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False)
    adapted = peft.get_peft_model(type(model).from_pretrained(folder / "lora"), config)
    adapted.save_pretrained(folder / "adapter")
    again = peft.PeftModel.from_pretrained(type(model).from_pretrained(folder / "lora"), folder / "adapter")
    expected = {n: t for n, t in adapted.state_dict().items() if "lora_" in n}
    old = save_with_old_names(folder / "adapter", folder / "old adapter")
    by_peft = peft.PeftModel.from_pretrained(type(model).from_pretrained(folder / "lora"), old, adapter_name="policy")
    by_transformers = type(model).from_pretrained(folder / "lora")
    by_transformers.load_adapter(str(old))
    lost_of_old = {
        "peft": [
            n for n, t in expected.items() if not torch.equal(by_peft.state_dict()[n.replace("default", "policy")], t)
        ],
        "transformers": [
            n
            for n, t in expected.items()
            if not torch.equal(by_transformers.state_dict()[n.removeprefix("base_model.model.")], t)
        ],
    }
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        names = sorted(file.keys())
    return {
        "lost": sum(not torch.equal(again.state_dict()[n], t) for n, t in expected.items()),
        "of": len(expected),
        "names": names[:1] + names[-1:],
        "status": nrl_patches.status()["peft.adapter_names_by_class"].state,
        "lost_of_old": {how: (sum("visual." in n for n in lost), len(lost)) for how, lost in lost_of_old.items()},
        "merged": layout(folder / "merged"),
    }


if __name__ == "__main__":
    with quiet(), tempfile.TemporaryDirectory() as made:
        report = {"status": {i: s.state for i, s in nrl_patches.status().items() if "qwen_vl" in i or "subclass" in i}}
        for number, kind in enumerate(qwen_vl_rules.HEADS):
            (Path(made) / str(number)).mkdir()
            report[kind] = family(kind, Path(made) / str(number))
        report["lookups"] = lookups()
        if "ViTModel" in qwen_vl_rules.registered_rules():  # from 5.9.0 on: rules by class
            report["other_families"] = other_families()
            report["registered"] = [registered("MineToo"), registered("qwen2_vl")]
        if transformers.utils.is_peft_available():
            report["lora"] = lora(Path(made))
        report["own_rules_kept"] = own_rules()
    print(json.dumps(report))
