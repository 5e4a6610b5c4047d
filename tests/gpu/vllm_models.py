"""Small random checkpoints for vLLM's engines, as the hub has them; made by transformers where it has the model.

Nemotron Nano VL exists only as code of the hub, so its tower and its projector are written down here by name and shape;
its language model is transformers' Nemotron-H. Its LayerScale is folded, as in NVIDIA's checkpoints.
"""

import json

import torch

TEXT = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
GEMMA4 = TEXT | {
    "num_hidden_layers": 6,
    "head_dim": 64,
    "sliding_window": 64,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 128,
}
HYBRID = TEXT | {
    "hybrid_override_pattern": "M-M*-M-",
    "head_dim": 64,
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "ssm_state_size": 32,
    "n_groups": 2,
    "chunk_size": 64,
}
QWEN_VISION = {
    "depth": 2,
    "num_heads": 4,
    "hidden_size": 256,
    "out_hidden_size": 256,
    "intermediate_size": 256,
    "fullatt_block_indexes": [1],
    "window_size": 112,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
SPECIAL = {
    1002: "<|vision_start|>",
    1003: "<|vision_end|>",
    1005: "<|image_pad|>",
    1006: "<|video_pad|>",
    1010: "<image>",
    1011: "<img>",
    1012: "</img>",
    1020: "<|audio|>",
    1021: "<|audio>",
    1022: "<audio|>",
}
GEMMA4_TOWERS = {
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "use_clipped_linears": True,
        "default_output_length": 280,
    },
    "audio_config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "output_proj_dims": 256},
    "image_token_id": 1005,
    "boi_token_id": 1002,
    "eoi_token_id": 1003,
    "video_token_id": 1006,
    "audio_token_id": 1020,
    "boa_token_id": 1021,
    "eoa_token_index": 1022,
}
TOWER = {"name": "vit_small_patch16_224", "width": 384, "depth": 12, "inner": 1536, "side": 64, "patch": 16}

EXPERTS = TEXT | {"num_experts_per_tok": 2, "head_dim": 64, "num_hidden_layers": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4}

FAMILIES = ("gemma3", "qwen2_5_vl", "apertus", "nemotron_h", "nano_nemotron_vl")
OTHERS = ("gemma4", "gemma4_towers", "gemma4_parameters", "qwen3_moe", "gpt_oss", "gpt_oss_mxfp4", "mamba")
"""Gemma 4 is one with experts beside its dense layers; its towers are those of images and of sound, and of its
parameters is a stream that has none of its buffers.
"""

PROMPTS = ([3, 5, 9, 11, 20], [7, 40, 2, 81, 33, 64, 5, 120, 9], list(range(100, 164)))
MEDIA_PROMPTS = {
    "qwen2_5_vl": {"image": [3, 1002, 1005, 1003, 9, 11, 20]},
    "nano_nemotron_vl": {"image": [3, 1010, 9, 11, 20]},
    "gemma4_towers": {"image": [3, 1005, 9, 11, 20], "audio": [3, 1020, 9, 11, 20]},
    "gemma4_parameters": {"audio": [3, 1020, 9, 11, 20]},
}
"""By family, prompts that show something of a kind."""

UNSENT = {
    "apertus": ("act_fn.beta", "act_fn.eps"),
    "gemma4_parameters": ("put_min", "put_max", "layer_scalar"),
}
"""Buffers that a stream made of a model's parameters does not carry."""


def make(family, folder):
    """Write a checkpoint of one of ``FAMILIES`` or ``OTHERS`` into an empty folder; return the folder."""
    import transformers as t

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = _BUILDERS.get(family.removesuffix("_mxfp4"), _hybrid)(t)
    model = _randomized(model).to(torch.bfloat16)
    if family == "gpt_oss_mxfp4":
        _save_mxfp4(folder, model)
    elif not family.startswith(("nemotron", "nano")):
        model.save_pretrained(folder)
    else:
        _save_hybrid(folder, model, with_tower=family == "nano_nemotron_vl")
    _make_tokenizer(folder, family)
    return folder


def _gemma3(t):
    fields = TEXT | {"num_hidden_layers": 6, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64}
    return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**fields))


def _apertus(t):
    return t.ApertusForCausalLM(t.ApertusConfig(**TEXT | {"num_hidden_layers": 4, "rope_parameters": ROPE}))


def _gemma4(t):
    return t.Gemma4ForCausalLM(t.Gemma4TextConfig(**GEMMA4))


def _gemma4_towers(t):
    config = t.Gemma4Config(text_config=GEMMA4, tie_word_embeddings=False, **GEMMA4_TOWERS)
    return t.Gemma4ForConditionalGeneration(config)


def _qwen3_moe(t):
    fields = EXPERTS | {"num_experts": 8, "moe_intermediate_size": 128, "rope_parameters": ROPE}
    return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**fields))


def _gpt_oss(t):
    fields = EXPERTS | {"num_local_experts": 8, "intermediate_size": 256, "sliding_window": 64}
    return t.GptOssForCausalLM(t.GptOssConfig(**fields))


def _mamba(t):
    fields = {name: TEXT[name] for name in ("hidden_size", "vocab_size", "tie_word_embeddings", "eos_token_id")}
    return t.MambaForCausalLM(t.MambaConfig(**fields | {"num_hidden_layers": 4, "state_size": 16}))


def _qwen2_5_vl(t):
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4}
    names = ("image", "video", "vision_start", "vision_end")
    config = t.Qwen2_5_VLConfig(
        text_config=TEXT | {"num_hidden_layers": 4, "rope_theta": 1e4, "rope_scaling": rope},
        vision_config=QWEN_VISION,
        tie_word_embeddings=False,
        **{f"{n}_token_id": i for n, i in zip(names, (1005, 1006, 1002, 1003), strict=True)},
    )
    return t.Qwen2_5_VLForConditionalGeneration(config)


def _hybrid(t):
    return t.NemotronHForCausalLM(t.NemotronHConfig(**HYBRID))


_BUILDERS = {
    "gemma3": _gemma3,
    "qwen2_5_vl": _qwen2_5_vl,
    "apertus": _apertus,
    "gemma4": _gemma4,
    "gemma4_towers": _gemma4_towers,
    "gemma4_parameters": _gemma4_towers,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "mamba": _mamba,
}


def _randomized(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.08)
            elif name.endswith(("bias", "sinks")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    return model


def _save_mxfp4(folder, model):
    """Save GPT-OSS with experts of random four-bit values, which share a scale by 32, as the hub has them."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)

    def drawn(low, high, *shape):
        return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)

    tensors = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = weight.shape  # The hub has them transposed.
            tensors[f"{name}_blocks"] = drawn(0, 256, experts, rows, columns // 32, 16)
            tensors[f"{name}_scales"] = drawn(119, 123, experts, rows, columns // 32)
        else:
            tensors[name] = weight.detach().contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    model.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    model.config.architectures = ["GptOssForCausalLM"]
    model.config.save_pretrained(folder)


def _save_hybrid(folder, model, *, with_tower):
    from safetensors.torch import save_file

    # Not by save_pretrained, whose names differ between releases: these are the hub's.
    tensors = {f"backbone.{n.removeprefix('model.')}" if n.startswith("model.") else n: w.detach().contiguous()
               for n, w in model.state_dict().items()}  # fmt: skip
    text = HYBRID | {"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "dtype": "bfloat16"}
    text |= {"num_hidden_layers": len(HYBRID["hybrid_override_pattern"]), "use_mamba_kernels": False}
    config = text
    if with_tower:
        tensors = {f"language_model.{name}": weight for name, weight in tensors.items()} | tower_weights()
        config = {
            "architectures": ["NemotronH_Nano_VL_V2"],
            "model_type": "NemotronH_Nano_VL_V2",
            "auto_map": {"AutoConfig": "configuration.NanoConfig"},
            "dtype": "bfloat16",
            "text_config": text,
            "vision_config": {
                "args": {"model": TOWER["name"], "cpe_max_size": 2 * TOWER["side"], "register_multiple": 8},
                "preferred_resolution": [TOWER["side"]] * 2,
                "patch_size": TOWER["patch"],
            },
            "force_image_size": TOWER["side"],
            "patch_size": TOWER["patch"],
            "template": "none",
            "downsample_ratio": 0.5,
            "ps_version": "v2",
            "image_tag_type": "internvl",
            "use_thumbnail": False,
            "vit_hidden_size": TOWER["width"],
            "projector_hidden_size": 512,
            "norm_mean": [0.5, 0.5, 0.5],
            "norm_std": [0.25, 0.25, 0.25],
        }
        (folder / "configuration.py").write_text(CONFIGURATION, encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


CONFIGURATION = '''"""What vLLM reads of the configuration of a Nemotron Nano VL."""

from transformers import NemotronHConfig, PretrainedConfig


class TowerConfig(PretrainedConfig):
    model_type = "radio_tower"

    def __init__(self, args=None, preferred_resolution=(64, 64), patch_size=16, **kwargs):
        self.args, self.preferred_resolution, self.patch_size = args or {}, preferred_resolution, patch_size
        super().__init__(**kwargs)


class NanoConfig(PretrainedConfig):
    model_type = "NemotronH_Nano_VL_V2"
    sub_configs = {"text_config": NemotronHConfig, "vision_config": TowerConfig}

    def __init__(self, text_config=None, vision_config=None, **kwargs):
        self.text_config = NemotronHConfig(**(text_config or {}))
        self.vision_config = TowerConfig(**(vision_config or {}))
        super().__init__(**kwargs)

    def get_text_config(self, *args, **kwargs):
        return self.text_config
'''


def tower_weights():
    """Return random weights of a RADIO tower without LayerScale, and of the projector behind it."""
    generator = torch.Generator().manual_seed(2)

    def matrix(*shape):
        return (torch.randn(shape, generator=generator) * 0.06).to(torch.bfloat16)

    width, inner, patch = TOWER["width"], TOWER["inner"], TOWER["patch"]
    prefix = "vision_model.radio_model.model."
    tensors = {
        "patch_generator.embedder.weight": matrix(width, 3 * patch * patch),
        "patch_generator.pos_embed": matrix(1, (2 * TOWER["side"] // patch) ** 2, width),
        "patch_generator.cls_token.token": matrix(8, width),
    }
    for index in range(TOWER["depth"]):
        block = f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            tensors |= {f"{block}.{norm}.weight": 1 + matrix(width), f"{block}.{norm}.bias": matrix(width)}
        for layer, (rows, columns) in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
        }.items():
            tensors |= {f"{block}.{layer}.weight": matrix(rows, columns), f"{block}.{layer}.bias": matrix(rows)}
    tensors = {prefix + name: weight for name, weight in tensors.items()}
    return tensors | {
        "mlp1.0.weight": 1 + matrix(4 * width),
        "mlp1.1.weight": matrix(512, 4 * width),
        "mlp1.3.weight": matrix(TEXT["hidden_size"], 512),
    }


def _make_tokenizer(folder, family):
    """Add a tokenizer in which one word is one token, and what else Qwen's and Gemma's processors are made of."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {SPECIAL.get(i, f"t{i}"): i for i in range(TEXT["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, "t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = dict.fromkeys(("pad_token", "unk_token"), "t0") | {"eos_token": "t1"}
    if family in {"gemma4_towers", "gemma4_parameters"}:
        _make_gemma4_processor(folder, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends, **GEMMA4_TOKENS))
        return
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(SPECIAL.values()), **ends
    ).save_pretrained(folder)
    if family != "qwen2_5_vl":
        return
    processor = "Qwen2_5_VLProcessor"
    pixels = {
        "min_pixels": 3136,
        "max_pixels": 12544,
        "size": {"shortest_edge": 3136, "longest_edge": 12544},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
        "merge_size": 2,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "rescale_factor": 1 / 255,
        "resample": 3,
    } | dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True)
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    changed = settings | {"processor_class": processor, "chat_template": "{{ messages }}"}
    path.write_text(json.dumps(changed), encoding="utf-8")


GEMMA4_TOKENS = {
    "bos_token": "t2",
    "extra_special_tokens": {
        "image_token": SPECIAL[1005],
        "boi_token": SPECIAL[1002],
        "eoi_token": SPECIAL[1003],
        "audio_token": SPECIAL[1020],
        "boa_token": SPECIAL[1021],
        "eoa_token": SPECIAL[1022],
    },
}


def _make_gemma4_processor(folder, tokenizer):
    import transformers as t

    parts = t.Gemma4AudioFeatureExtractor(), t.Gemma4ImageProcessor(), tokenizer, t.Gemma4VideoProcessor()
    t.Gemma4Processor(*parts).save_pretrained(folder)


def medium(kind):
    """Return what the prompts of ``MEDIA_PROMPTS`` show: an image, or two seconds of a tone and their rate."""
    import numpy as np
    from PIL import Image

    if kind == "audio":
        return (0.3 * np.sin(np.arange(32_000) * 2 * np.pi * 440 / 16_000)).astype("float32"), 16_000
    return Image.fromarray((np.arange(64 * 64 * 3).reshape(64, 64, 3) * 7 % 256).astype("uint8"))


def stream(folder, family):
    """Return what a trainer would send of a checkpoint: names and tensors."""
    from safetensors.torch import load_file

    weights = [pair for file in sorted(folder.glob("*.safetensors")) for pair in load_file(file).items()]
    return [(name, weight) for name, weight in weights if not name.endswith(UNSENT.get(family, ("\0",)))]
