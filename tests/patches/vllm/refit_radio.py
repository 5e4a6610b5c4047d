"""Refit a tiny RADIO tower, two real blocks, from every kind of LayerScale stream; through layerwise reload too.

    python refit_radio.py SIDE...

Prints, per side (``off``, ``alone``, ``both``) and case, the smallest and largest value of each LayerScale of the two
blocks, and whether every other parameter is the stream's. The cases: what the stream says of LayerScale (nothing, or
values under three names), whether the tower started from its constructor's values or from the dummy load's, and into
how many batches the stream was cut; with 40, which is one tensor each, an empty batch comes before the first and after
each. A reload is done twice. Then what else writes or loses the scales, each way with the folded stream at its end,
after which what was there before must still be there. Two are lines of vLLM's GPU workers, copied: level-2 sleep, here
with NaN for the memory that it discards, and the reload in kernel format.

Prints too, per side, what is listed of a tower before and after a reload that carries nothing of it.
"""

import itertools
import json
import math
import sys
import tempfile
import types
from contextlib import nullcontext

import tiny
import torch

import nrl_patches
from nrl_patches.patches._shared.dummy_load import UNQUANTIZED

CONSTANTS, LAYER_SCALE = "vllm.dummy_load_constants", "vllm.radio_layer_scale"

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

    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(model, UNQUANTIZED)


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
            kept = all(one is other for one, other in zip(own, scales(model), strict=True))  # CUDA graphs hold them.
            yield f"{kind}, {which} reload, {count}", outcome(model, weights) | {"kept": kept}


def older_towers(count):
    """Some that are older than the patch, made together, because to undo and to apply search the heap."""
    with nrl_patches.undo(LAYER_SCALE):
        return [tower() for _ in range(count)]


def reloaded_tower():
    """One that was reloaded from a stream that had nothing of it."""
    from vllm.model_executor.model_loader import reload

    model = tower()
    reload.record_metadata_for_reloading(model)
    reload.initialize_layerwise_reload(model)
    model.load_weights(iter([]))
    reload.finalize_layerwise_reload(model, types.SimpleNamespace(dtype=torch.float32))
    return model


TOWERS = {
    "new": tower,
    "older": None,
    "reloaded": reloaded_tower,
    "cast": lambda: tower().to(torch.float64).to(torch.float32),
}
"""How each is made, None where that is :func:`older_towers`."""


def untouched(model, _):
    pass


def dummy_load(model, _):
    fill(model)


def explicit_stream(model, _):
    refit(model, stream(STREAMS["gamma"]), 3)


def kernel_format(model, stored):
    for name, weight in stored.named_parameters():
        model.get_parameter(name).copy_(weight)


def sharded_state(model, stored):
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

    with tempfile.TemporaryDirectory() as folder:
        ShardedStateLoader.save_model(stored, folder)
        where = types.SimpleNamespace(model=folder, model_weights="")
        ShardedStateLoader(LoadConfig(load_format="sharded_state")).load_weights(model, where)


def load_state_dict(model, stored):
    model.load_state_dict(stored.state_dict())


WRITERS = {"gamma": (explicit_stream, kernel_format, sharded_state, load_state_dict), "folded": (untouched, dummy_load)}


def sleep(model):
    saved = {name: buffer.cpu().clone() for name, buffer in model.named_buffers()}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(math.nan)
    for name, buffer in model.named_buffers():
        buffer.data.copy_(saved[name].data)


def written_with_explicit_values(model):
    for (block, branch), value in EXPLICIT.items():
        getattr(model.model.encoder.layers[block], f"ls{branch}").data.fill_(value)
    return model


def outside_writes():
    every = [(kind, write) for kind, writes in WRITERS.items() for write in writes]
    each = [*itertools.product(every, TOWERS.items(), ("awake", "asleep"))]
    for ((kind, write), (made, make), then), older in zip(each, older_towers(len(each)), strict=True):
        model = make() if make else older
        own = scales(model)
        # From an engine without the patch into one with it, and back.
        write(model, written_with_explicit_values(older if make else tower()))
        if then == "asleep":
            sleep(model)
        weights = stream(())
        refit(model, weights, 3)
        kept = all(one is other for one, other in zip(own, scales(model), strict=True))
        yield f"{kind}, {write.__name__}, {made}, {then}", outcome(model, weights) | {"kept": kept}


def listed():
    return [
        [
            [[name, str(weight.dtype), [*weight.shape], weight.requires_grad] for name, weight in own.items()]
            for own in (dict(model.named_parameters()), model.state_dict())
        ]
        for model in (tower(), reloaded_tower())
    ]


def main():
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config

    tiny.prepare()
    config = VllmConfig(device_config=DeviceConfig("cpu"))
    tiny.start_world(config)
    undone = {"off": (CONSTANTS, LAYER_SCALE), "alone": (CONSTANTS,), "both": ()}
    report = {"listed": {}, "outside": {}}
    torch.use_deterministic_algorithms(mode=True)  # Fills uninitialised memory, with NaN.
    with set_current_vllm_config(config), torch.no_grad():
        for side in sys.argv[1:]:
            with nrl_patches.undo(*undone[side]) if undone[side] else nullcontext():
                report[side] = dict([*cases(), *reloads()])
                report["listed"][side] = listed()
                report["outside"][side] = dict(outside_writes())
    report["status"] = {name: nrl_patches.status()[name].state for name in (CONSTANTS, LAYER_SCALE)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
