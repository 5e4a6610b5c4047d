"""A dtype asked for by either name, through every way into ``NeMoAutoModelForCausalLM``, with and without the patch.

    python dtype_requests.py

Prints by way and request the dtypes of the parameters, or what was raised. Of Automodel only the hard-coded CUDA device
is replaced; see ``cpu_for_cuda.py``.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
import cpu_for_cuda

import nrl_patches
from nrl_patches.engine.registry import load
from nrl_patches.patches._shared.quiet import quiet

PATCH = "nemo_automodel.dtype_keyword"

REQUESTS = {
    "float32": {"dtype": torch.float32},
    "'float32'": {"dtype": "float32"},
    "'torch.float32'": {"dtype": "torch.float32"},
    "bfloat16": {"dtype": torch.bfloat16},
    "'auto'": {"dtype": "auto"},
    "None": {"dtype": None},
    "'fp32'": {"dtype": "fp32"},
    "torch_dtype=float32": {"torch_dtype": torch.float32},
    "torch_dtype='auto'": {"torch_dtype": "auto"},
    "nothing": {},
    "torch_dtype=float32, None": {"torch_dtype": torch.float32, "dtype": None},
    "torch_dtype=float32, bfloat16": {"torch_dtype": torch.float32, "dtype": torch.bfloat16},
    "torch_dtype=bfloat16, float32": {"torch_dtype": torch.bfloat16, "dtype": torch.float32},
}

UNPATCHED = ("float32", "'float32'", "torch_dtype=float32")


def save_llama(folder):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=32, tie_word_embeddings=False, dtype=torch.bfloat16)
    config.architectures = ["LlamaForCausalLM"]
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def asked(auto_model, way, folder, force_hf, request):
    source = folder if way == "from_pretrained" else transformers.AutoConfig.from_pretrained(folder)
    plain = {"use_liger_kernel": False, "use_sdpa_patching": False, "attn_implementation": "eager"}
    try:
        model = getattr(auto_model.NeMoAutoModelForCausalLM, way)(source, force_hf=force_hf, **plain, **request)
    except Exception as error:  # noqa: BLE001 - what a release raises is what is looked at
        return type(error).__name__
    return " ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()}))


def ask_all(auto_model, requests):
    """Return by way, with Hugging Face's class or Automodel's, what each request gets."""
    with tempfile.TemporaryDirectory() as folder:
        save_llama(folder)
        return {
            f"{way}{' of Hugging Face' * force_hf}": {
                label: asked(auto_model, way, folder, force_hf, REQUESTS[label]) for label in requests
            }
            for way, force_hf in itertools.product(("from_pretrained", "from_config"), (False, True))
        }


def report(auto_model):
    status = nrl_patches.status()[PATCH]
    with_it = ask_all(auto_model, REQUESTS)
    with nrl_patches.undo(PATCH):
        return {"status": status.state, "on": with_it, "off": ask_all(auto_model, UNPATCHED)}


if __name__ == "__main__":
    with quiet():
        found = report(cpu_for_cuda.install())
        found["restore"] = dict(load().patches["nemo_automodel.dtype_restore"].observe().evidence)
    print(json.dumps(found))
