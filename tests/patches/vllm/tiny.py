"""Tiny checkpoints and a one-process vLLM to load them into; imported by the scripts that run on vLLM's releases.

What is not vLLM's own here, and why:

- On 0.9.x the CPU platform is set by hand, since those releases look for a distribution named ``vllm``, and six
  operators are declared by name, without a kernel: ``_C::silu_and_mul``, ``gelu_and_mul``, ``gelu_tanh_and_mul``,
  ``rms_norm``, ``fused_add_rms_norm`` and ``rotary_embedding``. Constructors look them up; nothing calls them.
- The registry inspects model classes in this process rather than in one of their own, which takes 10 s each.
- Linear weights stay where they are. The CPU backend packs them and empties the parameters, and then nobody could refit
  or compare them by ``load_weights`` alone, as one can on a GPU.
- torchvision's wheel is built for CUDA; three of its operators are declared so that it can be imported.
"""

import inspect
import json
import math
import sys
import tempfile
from pathlib import Path

import torch

OPERATORS = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "rms_norm", "fused_add_rms_norm", "rotary_embedding")

_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
    "head_dim": 64,
    "max_position_embeddings": 256,
}
_QWEN_TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4},
    "tie_word_embeddings": False,
}
_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN_TOKENS = {
    "image_token_id": 505,
    "video_token_id": 506,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
}


_LIBRARIES = []
"""Declared operators live as long as these."""


def prepare():
    """Declare and set what the module's docstring lists; before anything of vLLM's models is imported."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    _LIBRARIES.append(library)
    for name, rest in (
        ("nms", "Tensor scores, float iou_threshold"),
        ("qnms", "Tensor scores, float iou_threshold"),
        ("roi_align", "Tensor rois, float spatial_scale, int height, int width, int sampling_ratio, bool aligned"),
    ):
        library.define(f"{name}(Tensor input, {rest}) -> Tensor")

    from vllm import platforms

    if not platforms.current_platform.is_cpu():
        from vllm.platforms.cpu import CpuPlatform

        platforms._current_platform = platforms.current_platform = CpuPlatform()
        for name in OPERATORS:
            torch.library.define(f"_C::{name}", "(Tensor x) -> Tensor")

    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda inspect_class: inspect_class()

    import vllm.model_executor.layers.linear
    import vllm.model_executor.layers.vocab_parallel_embedding  # noqa: F401 - both hold the function by name

    def keep(layer, remove_weight):  # noqa: ARG001 - called so
        layer.cpu_linear = torch.nn.functional.linear

    for module in list(sys.modules.values()):
        if "dispatch_cpu_unquantized_gemm" in getattr(module, "__dict__", {}):
            module.dispatch_cpu_unquantized_gemm = keep


def make(family, folder):
    """Write a checkpoint with random weights, as transformers' ``save_pretrained`` lays it out."""
    import transformers as t

    if family.startswith("qwen"):
        version = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[family]
        vision = (
            {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
            if family == "qwen2_vl"
            else {
                "hidden_size": 64,
                "out_hidden_size": 128,
                "intermediate_size": 96,
                "fullatt_block_indexes": [1],
                "window_size": 112,
            }
        )
        config = getattr(t, f"{version}Config")(
            text_config=_QWEN_TEXT, vision_config=_QWEN_VISION | vision, tie_word_embeddings=False, **_QWEN_TOKENS
        )
        model = getattr(t, f"{version}ForConditionalGeneration")(config)
    else:
        name, extra = {
            "gemma": ("Gemma", {}),
            "gemma2": (
                "Gemma2",
                {"sliding_window": 64, "query_pre_attn_scalar": 64, "hidden_act": "gelu_pytorch_tanh"},
            ),
            "gemma3": ("Gemma3", {"sliding_window": 64, "query_pre_attn_scalar": 64}),
        }[family]
        config = getattr(t, f"{name}TextConfig" if family == "gemma3" else f"{name}Config")(**_TEXT, **extra)
        model = getattr(t, f"{name}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            one = weight.ndim == 1 and "bias" not in name and "gemma" not in family
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 + one)
    model.save_pretrained(folder)
    if family.startswith("qwen"):
        _make_processor(folder, f"{version}Processor")
    return folder


def _make_processor(folder, name):
    """Add the tokenizer, in which one word is one token, and the image processor, which decides about `input_norm`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {502: "<|vision_start|>", 503: "<|vision_end|>", 505: "<|image_pad|>", 506: "<|video_pad|>"}
    words = {special.get(i, f"t{i}"): i for i in range(_QWEN_TEXT["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = dict.fromkeys(("pad_token", "unk_token"), "t0") | {"eos_token": "t1"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(special.values()), **ends
    ).save_pretrained(folder)
    pixels = {"min_pixels": 3136, "max_pixels": 12544, "size": {"shortest_edge": 3136, "longest_edge": 12544}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            pixels
            | dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True)
            | {
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": name,
                "merge_size": 2,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "rescale_factor": 1 / 255,
                "resample": 3,
            }
        ),
        encoding="utf-8",
    )
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps(settings | {"processor_class": name, "chat_template": "{{ messages }}"}),
        encoding="utf-8",
    )


def batches(folder, count):
    """Read the complete checkpoint and split its tensors into so many batches of a refit."""
    from safetensors.torch import load_file

    weights = [pair for file in sorted(Path(folder).glob("*.safetensors")) for pair in load_file(file).items()]
    size = math.ceil(len(weights) / count)
    return [weights[start : start + size] for start in range(0, len(weights), size)]


def vllm_config(folder, load_format):
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format=load_format,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
    ).create_engine_config()


def start_world(config):
    """Make the process groups of one process, without which no layer can be constructed."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{tempfile.mkdtemp()}/store", 0, "gloo")
        initialize_model_parallel(1, 1)


def load(config):
    """Load as an engine does: construct, fill or read, process."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader

    config.compilation_config.static_forward_context.clear()
    loader = get_model_loader(config.load_config)
    asks = inspect.signature(loader.load_model).parameters
    extra = {"model_config": config.model_config} if "model_config" in asks else {}
    with set_current_vllm_config(config):
        return loader.load_model(vllm_config=config, **extra)


def tensors(model):
    """Every tensor of a model by name: parameters, buffers of both kinds, plain attributes."""
    return {
        f"{path}.{name}": tensor
        for path, module in model.named_modules()
        for holder in (module._parameters, module._buffers, vars(module))
        for name, tensor in holder.items()
        if isinstance(tensor, torch.Tensor)
    }


def differences(found, expected):
    """The tensors of a model that are not bitwise those of another, each with its first value here and there."""
    found, expected = tensors(found), tensors(expected)
    assert found.keys() == expected.keys()
    return {
        name: [found[name].flatten()[0].item(), right.flatten()[0].item()]
        for name, right in expected.items()
        if not same_bits(found[name], right)
    }


def same_bits(one, other):
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.detach().flatten().view(torch.uint8), other.detach().flatten().view(torch.uint8))
