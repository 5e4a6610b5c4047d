"""Refit a tiny RADIO tower, two real blocks, from every kind of LayerScale stream; through layerwise reload too.

    python refit_radio.py SIDE...

Prints, per side (``off``, ``alone``, ``both``) and case, the smallest and largest value of each LayerScale of the two
blocks, and whether every other parameter is the stream's. The cases: what the stream says of LayerScale (nothing, or
values under three names), whether the tower started from its constructor's values or from the dummy load's, and into
how many batches the stream was cut; with 40, which is one tensor each, an empty batch comes before the first and after
each. A reload is done twice.
"""

import itertools
import json
import math
import sys
import types
from contextlib import nullcontext

import tiny
import torch

import nrl_patches

CONFIG = {
    "hidden_size": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 16,
    "max_img_size": 64,
    "cpe_max_size": 64,
    "preferred_resolution": (32, 32),
    "num_channels": 3,
    "num_cls_tokens": 1,
    "num_registers": None,
    "reg_tokens": None,
    "register_multiple": None,
    "cls_token_per_teacher": False,
    "teachers": [],
    "video_temporal_patch_size": 1,
    "separate_video_embedder": False,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
}

STREAMS = {
    "folded": (),
    "gamma": ("ls{}.gamma",),
    "bare": ("ls{}",),
    "lambda1": ("layer_scale{}.lambda1",),
}
EXPLICIT = {(block, branch): 0.25 + block + branch / 8 for block in (0, 1) for branch in (1, 2)}


def tower():
    from vllm.model_executor.models.radio import RadioModel

    return RadioModel(types.SimpleNamespace(**CONFIG))


def fill(model):
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(model, None)


def stream(names, branches=(1, 2)):
    generator = torch.Generator().manual_seed(0)
    weights = [
        (checkpoint_name(name), torch.randn(weight.shape, generator=generator))
        for name, weight in tower().named_parameters()
        if not name.endswith((".ls1", ".ls2"))
    ]
    for (block, branch), value in EXPLICIT.items():
        if branch in branches:
            weights += [
                (f"radio_model.model.blocks.{block}.{name.format(branch)}", torch.full((64,), value)) for name in names
            ]
    return weights


def checkpoint_name(name):
    return "radio_model." + name.replace("model.encoder.layers.", "model.blocks.")


def refit(model, weights, count):
    size = math.ceil(len(weights) / count)
    cut = [weights[start : start + size] for start in range(0, len(weights), size)]
    if size == 1:
        cut = [batch for one in cut for batch in (one, [])]
        model.load_weights(iter([]))
    for batch in cut:
        model.load_weights(iter(batch))


def scales(model):
    return [getattr(block, name) for block in model.model.encoder.layers for name in ("ls1", "ls2")]


def outcome(model, weights):
    own = {checkpoint_name(name): weight for name, weight in model.named_parameters()}
    return {
        "scales": [[scale.min().item(), scale.max().item()] for scale in scales(model)],
        "others": all(torch.equal(own[name], weight) for name, weight in weights if name in own and ".ls" not in name),
    }


def cases():
    for (kind, names), start, count in itertools.product(STREAMS.items(), ("auto", "dummy"), (1, 3, 40)):
        weights, model = stream(names), tower()
        if start == "dummy":
            fill(model)
        refit(model, weights, count)
        yield f"{kind}, {start}, {count}", outcome(model, weights)


def reloads():
    from vllm.model_executor.model_loader import reload

    subsets = {"folded": (), "first": (1,), "second": (2,), "gamma": (1, 2)}
    for (kind, branches), count in itertools.product(subsets.items(), (1, 3, 40)):
        weights, model = stream(STREAMS["gamma"], branches), tower()
        reload.record_metadata_for_reloading(model)
        fill(model)
        own = scales(model)
        for which in ("first", "second"):
            reload.initialize_layerwise_reload(model)
            refit(model, weights, count)
            reload.finalize_layerwise_reload(model, types.SimpleNamespace(dtype=torch.float32))
            # CUDA graphs hold the tensors, and what is no longer among the state's the next dummy load leaves alone.
            kept = all(one is other for one, other in zip(own, scales(model), strict=True))
            listed = [name for name in model.state_dict() if name.endswith((".ls1", ".ls2"))]
            yield f"{kind}, {which} reload, {count}", outcome(model, weights) | {"kept": kept, "listed": listed}


def main():
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config

    tiny.prepare()
    config = VllmConfig(device_config=DeviceConfig("cpu"))
    tiny.start_world(config)
    constants, layer_scale = "vllm.dummy_load_constants", "vllm.radio_layer_scale"
    undone = {"off": (constants, layer_scale), "alone": (constants,), "both": ()}
    report = {}
    torch.use_deterministic_algorithms(mode=True)  # Fills uninitialised memory, with NaN.
    with set_current_vllm_config(config), torch.no_grad():
        for side in sys.argv[1:]:
            with nrl_patches.undo(*undone[side]) if undone[side] else nullcontext():
                report[side] = dict([*cases(), *reloads()])
    report["status"] = {name: nrl_patches.status()[name].state for name in (constants, layer_scale)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
