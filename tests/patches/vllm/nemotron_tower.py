"""Run images through the real class of Nemotron VL with a real RADIO tower, refitted after a dummy load.

    python nemotron_tower.py SIDE...

What is replaced: the language model, by one without weights, and the tokenizer. The tower has two real blocks, in
bfloat16, and the projector is vLLM's. Prints, per side (``off``, ``on``) and start (``auto``, ``dummy``), the largest
difference between the embeddings of two images and those that are computed from the checkpoint by torch alone behind
a tower that was never filled with noise, as a part of the largest of these.
"""

import json
import sys
import types
from contextlib import nullcontext
from unittest import mock

import refit_radio
import tiny
import torch

import nrl_patches
from nrl_patches.patches._shared import nemotron_vl

PATCHES = ("vllm.dummy_load_constants", "vllm.radio_layer_scale", "vllm.nemotron_vl_final_layer_norm")
HIDDEN, PROJECTED = 64, 32


def runnable(made):
    """Let the linear layers compute with their weights, which the CPU backend would pack and empty."""
    for layer in made.modules():
        if hasattr(layer, "quant_method"):
            layer.cpu_linear = torch.nn.functional.linear
    return made


def language():
    made = torch.nn.Module()
    made.config = mock.Mock(dtype=torch.bfloat16)
    made.make_empty_intermediate_tensors = None
    made.load_weights = lambda weights: {name for name, _ in weights}
    return made


def configuration():
    config = mock.MagicMock(
        force_image_size=32,
        patch_size=16,
        downsample_ratio=0.5,
        vit_hidden_size=HIDDEN,
        projector_hidden_size=PROJECTED,
    )
    config.ps_version, config.sound_config, config.vision_config.layer_norm_eps = "v2", None, 1e-6
    config.text_config.configure_mock(hidden_size=PROJECTED, num_nextn_predict_layers=1)
    vllm_config = mock.MagicMock(use_v2_model_runner=False)
    vllm_config.model_config.hf_config = config
    vllm_config.model_config.multimodal_config.mm_encoder_only = False
    return vllm_config


def model():
    from vllm.model_executor.models import nano_nemotron_vl as upstream

    kind = upstream.NemotronH_Nano_VL_V2
    with (
        mock.patch.object(upstream, "init_vllm_registered_model", return_value=language()),
        mock.patch.object(kind, "get_vit_model_from_radio_config", return_value=refit_radio.tower()),
        mock.patch.object(upstream, "cached_tokenizer_from_config", mock.MagicMock(), create=True),
    ):
        return kind(vllm_config=configuration())


def checkpoint():
    """Random weights under the names of the checkpoint, with explicit scales of the tower's branches."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"mlp1.0.weight": (4 * HIDDEN,), "mlp1.1.weight": (PROJECTED, 4 * HIDDEN)}
    shapes["mlp1.3.weight"] = (PROJECTED, PROJECTED)
    shapes |= {f"vision_projector.vision_final_layernorm.{name}": (HIDDEN,) for name in ("weight", "bias")}
    own = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    tower = refit_radio.stream(refit_radio.STREAMS["gamma"])
    return own | {f"vision_model.{name}": (weight * 0.2).bfloat16() for name, weight in tower}


def expected(made, weights, pixels, features):
    """Norm, shuffle of pixels and projector by torch alone, behind the features of the tower."""
    norm = (weights[f"vision_projector.vision_final_layernorm.{name}"].float() for name in ("weight", "bias"))
    seen = torch.nn.functional.layer_norm(features.float(), (HIDDEN,), *norm, eps=1e-6).bfloat16()
    rows, columns = (size // 16 for size in pixels.shape[-2:])
    seen = made.pixel_shuffle(seen.reshape(len(seen), rows, columns, -1), scale_factor=0.5).flatten(1, 2).float()
    scale = torch.rsqrt(seen.square().mean(-1, keepdim=True) + 1e-5)
    seen = seen * scale * weights["mlp1.0.weight"].float()
    seen = torch.relu(seen @ weights["mlp1.1.weight"].float().T).square()
    return seen @ weights["mlp1.3.weight"].float().T


def difference(seen, right):
    return ((seen.float().reshape(right.shape) - right).abs().max() / right.abs().max()).item()


def outcome(made, weights, reference):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, 32, 32, generator=generator).bfloat16()
    _, features = reference.vision_model(pixels)
    return difference(made.extract_feature(pixels), expected(reference, weights, pixels, features))


def main():
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader  # noqa: F401 - is patched on import

    tiny.prepare()
    config = VllmConfig(device_config=DeviceConfig("cpu"))
    tiny.start_world(config)
    report = {}
    nemotron_vl.tiny_model()  # Imports the class, for which torchvision has to be absent or a stand-in.
    with set_current_vllm_config(config), torch.no_grad():
        weights = checkpoint()
        reference = runnable(refit_radio.tower().bfloat16())
        refit_radio.refit(
            reference, [(name.removeprefix("vision_model."), w) for name, w in weights.items() if "radio" in name], 1
        )
        for side in sys.argv[1:]:
            with nrl_patches.undo(*PATCHES) if side == "off" else nullcontext():
                for start in ("auto", "dummy"):
                    made = runnable(model())
                    if start == "dummy":
                        refit_radio.fill(made)
                    made.load_weights(iter(weights.items()))
                    holder = types.SimpleNamespace(vision_model=reference, pixel_shuffle=made.pixel_shuffle)
                    report[f"{side}, {start}"] = outcome(made, weights, holder)
    report["status"] = {name: nrl_patches.status()[name].state for name in PATCHES}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
