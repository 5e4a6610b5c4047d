"""Reload models that copy weights into their parameters themselves, layerwise; compare each with a load from disk.

    python reload_bare_copies.py

GPT-OSS and ColBERT are vLLM's own, with layers, from tiny random checkpoints; what is reloaded is twice what was
loaded. Of ColQwen3, ColQwen3.5 and ColPali only the projection and the real ``load_weights`` are there. Prints, per
side and model, the tensors that differ, and the warnings. Replaced are two functions of vLLM:

- the packing of experts, which the CPU backend does after a load and not after a reload;
- the check whether all weights were loaded, which does not find ColBERT's projection, since it has two names.
"""

import importlib
import json
import logging
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import tiny
import torch

import nrl_patches
from nrl_patches.patches._shared import layerwise_reload

PATCH = "vllm.layerwise_reload_bare_copies"


def gpt_oss(folder):
    import transformers

    size = dict.fromkeys(("hidden_size", "head_dim", "intermediate_size"), 64) | {"vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = transformers.GptOssConfig(**size, **heads, num_local_experts=4, num_experts_per_tok=2, sliding_window=64)
    return save(transformers.GptOssForCausalLM(config), folder)


def colbert(folder):
    """Make ColBERT on ModernBERT with a size of its projection; on BERT it could not be constructed with one."""
    import transformers
    from safetensors.torch import save_file

    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    tokens = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0)
    config = transformers.ModernBertConfig(**size, **tokens, vocab_size=128)
    model = transformers.ModernBertModel(config)
    save(model, folder)
    (path,) = folder.glob("*.safetensors")
    path.unlink()
    linear = {"linear.weight": torch.randn(32, 64, generator=torch.Generator().manual_seed(1))}
    save_file({**model.state_dict(), **linear}, path, metadata={"format": "pt"})
    config.colbert_dim, config.architectures = 32, ["ColBERTModernBertModel"]
    config.save_pretrained(folder)
    return folder


def save(model, folder):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return folder


def double(folder):
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        save_file({name: weight * 2 for name, weight in load_file(path).items()}, path, metadata={"format": "pt"})


def reload(folder):
    """Load, reload twice what was loaded, and return the tensors that differ from a load of that."""
    from vllm.model_executor.model_loader import reload as upstream

    config = tiny.vllm_config(folder, "auto")
    model = tiny.load(config)
    double(folder)
    (weights,) = tiny.batches(folder, 1)
    with layerwise_reload.visible_garbage(), torch.no_grad():
        upstream.initialize_layerwise_reload(model)
        model.load_weights(iter(weights))
        upstream.finalize_layerwise_reload(model, config.model_config)
    return sorted(tiny.differences(model, tiny.load(config)))


PROJECTIONS = {"colqwen3": "ColQwen3Model", "colqwen3_5": "ColQwen3_5Model", "colpali": "ColPaliModel"}


def reload_projection(module, name):
    """Reload a projection alone, and return its parameters that differ from what was sent."""
    from vllm.model_executor.model_loader.reload import layerwise

    upstream = importlib.import_module(f"vllm.model_executor.models.{module}")
    upstream.TokenPoolerHead = torch.nn.Module
    taken = ("load_weights", "_is_proj_weight", "_PROJ_LAYER_NAMES", "hf_to_vllm_mapper")
    functions = {key: value for key, value in vars(getattr(upstream, name)).items() if key in taken}
    model = type(name, (torch.nn.Module,), functions)()
    model.embed_dim, model.language_model = 2, torch.nn.Linear(2, 2)
    model.pooler = torch.nn.Module()
    model.pooler.head = torch.nn.Module()
    model.custom_text_proj = torch.nn.Linear(2, 2, dtype=torch.bfloat16).requires_grad_(requires_grad=False)
    layerwise.record_metadata_for_reloading(model)
    sent = {f"custom_text_proj.{key}": torch.full_like(w, 3.0) for key, w in model.custom_text_proj.named_parameters()}
    with layerwise_reload.visible_garbage(), torch.no_grad():
        layerwise.initialize_layerwise_reload(model)
        model.load_weights(iter(sent.items()))
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.bfloat16))
    return [key for key, weight in sent.items() if not torch.equal(model.get_parameter(key), weight)]


def main():
    tiny.prepare()
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe
    from vllm.model_executor.model_loader import default_loader

    default_loader.DefaultModelLoader.track_weights_loading = lambda *_, **__: None
    cpu_moe.cpu_prepack_moe_weight = lambda weight, isa: weight  # noqa: ARG005 - called so
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("nrl_patches").addHandler(handler)
    report = {}
    for make in (gpt_oss, colbert):
        folder = make(Path(tempfile.mkdtemp()) / make.__name__)
        if not report:
            tiny.start_world(tiny.vllm_config(folder, "auto"))
        for side in ("off", "on"):
            with nrl_patches.undo(PATCH) if side == "off" else nullcontext():
                report[f"{side}, {make.__name__}"] = reload(folder)
    for module, name in PROJECTIONS.items():
        with nrl_patches.undo(PATCH):
            report[f"off, {module}"] = reload_projection(module, name)
        report[f"on, {module}"] = reload_projection(module, name)
    print(json.dumps(report | {"said": said, "state": nrl_patches.status()[PATCH].state}))


if __name__ == "__main__":
    main()
