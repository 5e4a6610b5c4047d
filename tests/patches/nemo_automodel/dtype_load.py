"""The dtypes of tiny checkpoints after ``NeMoAutoModelForCausalLM.from_pretrained(..., force_hf=True)``.

    python dtype_load.py

Prints for each checkpoint and request the dtype of every parameter, and which values differ from the file's; what
``dtype_requests.py`` prints; and what comes of naming every argument. Of Automodel only the hard-coded CUDA device is
replaced; see ``cpu_for_cuda.py``.
"""

import inspect
import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import cpu_for_cuda
import dtype_requests

import nrl_patches
from nrl_patches.patches._shared.quiet import quiet
from nrl_patches.patches._shared.qwen_vl_rules import save_sharded

REQUESTS = {
    "float32": {"torch_dtype": torch.float32},
    "'float32'": {"torch_dtype": "float32"},
    "dtype=float32": {"dtype": torch.float32},
    "bfloat16": {"torch_dtype": torch.bfloat16},
    "auto": {"torch_dtype": "auto"},
    "nothing": {},
}

KEPT_WIDE = ("A_log", ".D", "dt_bias", "e_score_correction_bias")
"""The tensors that published Nemotron-H checkpoints keep in float32."""


def llama(dtype):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=32, tie_word_embeddings=False, dtype=dtype)
    config.architectures = ["LlamaForCausalLM"]
    return transformers.LlamaForCausalLM(config).to(dtype)


def nemotron_h(dtype):
    config = transformers.NemotronHConfig(
        vocab_size=64,
        hidden_size=32,
        layers_block_type=["mamba", "attention", "moe", "mamba"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=8,
        n_routed_experts=4,
        n_shared_experts=1,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        num_experts_per_tok=2,
        use_mamba_kernels=False,
        dtype=dtype,
    )
    config.architectures = ["NemotronHForCausalLM"]
    model = transformers.NemotronHForCausalLM(config).float()
    with torch.no_grad():
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if name.endswith(KEPT_WIDE):
                tensor.copy_(torch.rand_like(tensor) + 1e-3 / 3)  # not to be had in bfloat16
    return model


def save_nemotron_h(model, folder, dtype):
    """Write what transformers writes (experts one by one), in the dtypes of the published checkpoints."""
    model.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    tensors = {n: t if n.endswith(KEPT_WIDE) else t.to(dtype) for n, t in load_file(file).items()}
    # Under the names of the modules: Automodel looks for the tensors of the file by these.
    tensors = {n.replace("backbone.", "model."): t for n, t in tensors.items()}
    names = sorted(tensors)
    file.unlink()
    for shard in range(2):
        save_file(
            {n: tensors[n] for n in names[shard::2]},
            folder / f"model-{shard + 1:05d}-of-00002.safetensors",
            {"format": "pt"},
        )
    index = {n: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, n in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    return tensors


def loaded(auto_model, folder, tensors, **request):
    model = auto_model.NeMoAutoModelForCausalLM.from_pretrained(
        str(folder),
        force_hf=True,
        use_liger_kernel=False,
        use_sdpa_patching=False,
        attn_implementation="eager",
        **request,
    )
    found = dict(model.named_parameters())
    return {
        "dtypes": {name: str(weight.dtype).removeprefix("torch.") for name, weight in found.items()},
        "altered": [n for n, t in tensors.items() if n in found and not torch.equal(found[n].double(), t.double())],
    }


def all_by_keyword(folder):
    """Call what the patch replaces with each argument by the name that its signature has for it."""
    from nemo_automodel._transformers import auto_model, model_init

    init = auto_model._init_model
    given = {
        "cls": auto_model.NeMoAutoModelForCausalLM,
        "pretrained_model_name_or_path_or_config": str(folder),
        "attn_implementation": "eager",
        "torch_dtype": torch.float32,
        "quantization_config": None,
        "force_hf": True,
    }
    named = [p.name for p in inspect.signature(init).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    dtypes = []
    for first in range(len(named) + 1):  # How many are given by position.
        _, model = init(*(given[name] for name in named[:first]), **{name: given[name] for name in named[first:]})
        dtypes.append(str(model.dtype))
    restored = inspect.signature(model_init._restore_loaded_model_dtype).parameters
    values = (model, str(folder), model.config, None, {}, torch.float32)
    model_init._restore_loaded_model_dtype(**dict(zip(restored, values, strict=False)))
    try:
        init(cls=None)
    except TypeError as error:
        return {"named": named, "dtypes": dtypes, "complaint": str(error)}


if __name__ == "__main__":
    torch.manual_seed(0)
    auto_model = cpu_for_cuda.install()
    with quiet(), tempfile.TemporaryDirectory() as made:
        checkpoints = {}
        for dtype in (torch.bfloat16, torch.float16):
            folder = Path(made) / str(dtype)
            folder.mkdir()
            checkpoints[f"llama {str(dtype).removeprefix('torch.')}"] = (
                folder,
                save_sharded(llama(dtype), folder, rename=str),
            )
        folder = Path(made) / "nemotron_h"
        checkpoints["nemotron_h bfloat16"] = folder, save_nemotron_h(nemotron_h(torch.bfloat16), folder, torch.bfloat16)
        report = {"status": nrl_patches.status()["nemo_automodel.dtype_restore"].state}
        for checkpoint, (folder, tensors) in checkpoints.items():
            report[checkpoint] = {label: loaded(auto_model, folder, tensors, **kw) for label, kw in REQUESTS.items()}
        report["by keyword"] = all_by_keyword(checkpoints["llama bfloat16"][0])
        if report["status"] != "disabled":
            report["requests"] = dtype_requests.report(auto_model)
    print(json.dumps(report))
