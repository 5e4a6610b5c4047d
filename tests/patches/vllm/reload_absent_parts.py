"""Reload the attention of a tiny Gemma 3 that is quantised to int8, whole and without its values.

    python reload_absent_parts.py

The checkpoint is in the format of compressed-tensors, with a scale for each row; vLLM's CPU build quantises, packs and
processes by its own code. Prints, per side and stream, the names of the tensors that have NaN, with which uninitialised
memory is filled here, and what this package has warned of.
"""

import json
import logging
import tempfile
from contextlib import nullcontext
from pathlib import Path

import tiny
import torch

import nrl_patches
from nrl_patches.patches._shared import layerwise_reload

PATCH = "vllm.layerwise_reload_absent_parts"
STREAMS = {"all": ("q_proj", "k_proj", "v_proj"), "queries and keys": ("q_proj", "k_proj")}


def quantise(folder):
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    weights = {}
    for name, weight in load_file(path).items():
        weights[name] = weight
        if name.endswith("_proj.weight"):
            weights[f"{name}_scale"] = scale = weight.abs().amax(1, keepdim=True) / 127
            weights[name] = (weight / scale).round().to(torch.int8)
    save_file(weights, path, metadata={"format": "pt"})
    bits = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": bits | {"strategy": "channel", "dynamic": False},
        "input_activations": bits | {"strategy": "token", "dynamic": True},
    }
    quantisation = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": quantisation}
    path.write_text(json.dumps(config), encoding="utf-8")


def main():
    from vllm.model_executor.model_loader import reload

    tiny.prepare()
    folder = tiny.make("gemma3", Path(tempfile.mkdtemp()) / "gemma3")
    quantise(folder)
    config = tiny.vllm_config(folder, "auto")
    tiny.start_world(config)
    (weights,) = tiny.batches(folder, 1)
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("nrl_patches").addHandler(handler)
    report = {}
    for side in ("off", "on"):
        for stream, parts in STREAMS.items():
            said.clear()
            with nrl_patches.undo(PATCH) if side == "off" else nullcontext():
                model = tiny.load(tiny.vllm_config(folder, "auto"))
                sent = [
                    (name, w) for name, w in weights if "layers.0.self_attn" in name and any(p in name for p in parts)
                ]
                with layerwise_reload.visible_garbage(), torch.no_grad():
                    reload.initialize_layerwise_reload(model)
                    model.load_weights(iter(sent))
                    reload.finalize_layerwise_reload(model, config.model_config)
            garbage = [name for name, tensor in tiny.tensors(model).items() if tensor.float().isnan().any()]
            report[f"{side}, {stream}"] = {"garbage": garbage, "said": [*said]}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
