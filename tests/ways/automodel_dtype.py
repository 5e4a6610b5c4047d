"""Every spelling of a dtype in nemo-automodel's `from_pretrained`; a way returns what part of the weights has another.

The checkpoint holds bfloat16. Of Automodel only the hard-coded CUDA device is replaced; see ``cpu_for_cuda.py``.
"""

import functools
import tempfile
from functools import partial
from pathlib import Path

import torch
from patches.nemo_automodel import cpu_for_cuda
from ways.qwen_vl import quietly

from nrl_patches.patches._shared.qwen_vl_rules import save_sharded

SPELLINGS = {
    "torch.float32": (torch.float32, torch.float32),
    "'float32'": ("float32", torch.float32),
    "'torch.float32'": ("torch.float32", torch.float32),
    "torch.bfloat16": (torch.bfloat16, torch.bfloat16),
    "'bfloat16'": ("bfloat16", torch.bfloat16),
    "'auto'": ("auto", torch.bfloat16),
}
"""What is given, and what the weights ought to be."""


@functools.cache
def checkpoint():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=16, tie_word_embeddings=False, dtype=torch.bfloat16)
    config.architectures = ["LlamaForCausalLM"]
    folder = Path(tempfile.mkdtemp(prefix="nrl-patches-ways-"))
    save_sharded(LlamaForCausalLM(config).to(torch.bfloat16), folder, files=2, rename=str)
    return str(folder)


def other_dtypes(kind, expected, **request):
    auto_model = cpu_for_cuda.install()
    loader = kind(auto_model.NeMoAutoModelForCausalLM)
    common = {"use_liger_kernel": False, "use_sdpa_patching": False, "attn_implementation": "eager"}
    model = loader.from_pretrained(checkpoint(), **common, **request)
    dtypes = [weight.dtype for weight in model.parameters()]
    return sum(dtype != expected for dtype in dtypes) / len(dtypes)


def subclass(kind):
    return type("MyAutoModel", (kind,), {})


def ways():
    """Yield the name of each way and the function that goes it."""
    for keyword in ("torch_dtype", "dtype"):
        for force_hf in (True, False):
            for spelling, (value, expected) in SPELLINGS.items():
                call = partial(other_dtypes, lambda kind: kind, expected, **{keyword: value, "force_hf": force_hf})
                yield f"{keyword}={spelling}, force_hf={force_hf}", partial(quietly, call)
    by_subclass = partial(other_dtypes, subclass, torch.float32, torch_dtype=torch.float32, force_hf=True)
    yield "a subclass of the loader", partial(quietly, by_subclass)
