"""Checkpoints loaded by Automodel's own ``Checkpointer.load_base_model``, on one pair of releases.

    python qwen_vl_load.py

Prints what was lost on the way, as (vision tower, everything else).
"""

import json
import tempfile
from pathlib import Path

import torch
import transformers

# Before the patches: what these modules took from one another by name must be reached.
from nemo_automodel.components.checkpoint import checkpointing, conversion_mapping

import nrl_patches
from nrl_patches.patches._shared import qwen_vl_rules
from nrl_patches.patches._shared.quiet import quiet

CPU = torch.device("cpu")


def load(model, folder, *, is_peft=False):
    config = checkpointing.CheckpointingConfig(
        enabled=True,
        checkpoint_dir="",
        model_save_format="safetensors",
        model_cache_dir=str(folder),
        model_repo_id=str(folder),
        save_consolidated=True,
        is_peft=is_peft,
    )
    checkpointer = checkpointing.Checkpointer(config, 0, 0, 0)
    if any(tensor.is_meta for tensor in model.parameters()):
        checkpointer.initialize_model_weights(model, CPU)
    checkpointer.load_base_model(model, CPU, str(folder), str(folder))
    return model.state_dict()


def on_meta(kind, config):
    with torch.device("meta"):
        return kind(config)


def qwen_vl(family, folder, *, tied=False):
    model = qwen_vl_rules.tiny_model(family, tied=tied)
    expected = qwen_vl_rules.save_sharded(model, folder)
    return qwen_vl_rules.count_lost(load(on_meta(type(model), model.config), folder), expected)


def module_names(folder):
    """A checkpoint that has the names of the modules needs no rule."""
    model = qwen_vl_rules.tiny_model()
    expected = qwen_vl_rules.save_sharded(model, folder, rename=str)
    return qwen_vl_rules.count_lost(load(on_meta(type(model), model.config), folder), expected)


def text_only(folder):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=16, tie_word_embeddings=False)
    model = transformers.Qwen2ForCausalLM(config)
    expected = qwen_vl_rules.save_sharded(model, folder, rename=str)
    return qwen_vl_rules.count_lost(load(type(model)(config), folder), expected)


def lora(folder):
    """The base weights are loaded, the adapter's stay what they were."""
    from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules

    model = qwen_vl_rules.tiny_model()
    expected = qwen_vl_rules.save_sharded(model, folder)
    fresh = type(model)(model.config)
    apply_lora_to_linear_modules(fresh, PeftConfig(target_modules=["*q_proj", "*v_proj"], dim=2))
    adapter = {name: weight for name, weight in fresh.named_parameters() if "lora_" in name}
    before = {name: weight.detach().clone() for name, weight in adapter.items()}
    lost = qwen_vl_rules.count_lost(load(fresh, folder, is_peft=True), expected)
    return {"lost": lost, "adapter": len(before), "kept": sum(torch.equal(before[n], w) for n, w in adapter.items())}


def answers():
    """What Automodel's checkpointing gets to hear, by model type."""
    types = sorted({*transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES, *qwen_vl_rules.HEADS})
    return {t: checkpointing.get_combined_key_mapping(t, None) for t in types}


def changed():
    present = answers()
    lookup = conversion_mapping._transformers_get_checkpoint_conversion_mapping
    with nrl_patches.undo():
        pristine = answers()
        undone = conversion_mapping._transformers_get_checkpoint_conversion_mapping
    return {
        "types": len(present),
        "changed": [model_type for model_type in present if present[model_type] != pristine[model_type]],
        "copy_reached": lookup is not undone,
    }


if __name__ == "__main__":
    with quiet(), tempfile.TemporaryDirectory() as made:
        folders = [Path(made) / str(number) for number in range(6)]
        for made_folder in folders:
            made_folder.mkdir()
        report = {
            "status": {i: s.state for i, s in nrl_patches.status().items() if "qwen_vl" in i},
            "qwen2_vl": qwen_vl("qwen2_vl", folders[0]),
            "qwen2_5_vl": qwen_vl("qwen2_5_vl", folders[1]),
            "tied": qwen_vl("qwen2_vl", folders[2], tied=True),
            "module_names": module_names(folders[3]),
            "text_only": text_only(folders[4]),
            "lora": lora(folders[5]),
            "answers": changed(),
        }
    print(json.dumps(report))
