"""What Automodel tells of a request or a checkpoint that is wrong, without its patches and with.

    python still_loud.py ABOUT...

The cases are about ``dtype`` or ``qwen``, the loading of Qwen-VL by the Checkpointer.
Of Automodel only the hard-coded CUDA device is replaced; see ``cpu_for_cuda.py``.
"""

import itertools
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from patches.checkpoints import DAMAGES, damaged
from patches.told import by_side

sys.path.insert(0, str(Path(__file__).parent))
import cpu_for_cuda
import dtype_requests

from nrl_patches.patches._shared import qwen_vl_rules

BAD_REQUESTS = {
    "misspelt": "float23",
    "no floating point": torch.int8,
    "no dtype": float,
    "for each part": {"": torch.float32},
}
"""What is wrong as a dtype, by either name."""

OTHER_REQUESTS = {
    "a misspelt keyword": {"dtpye": torch.float32},
    "a bad dtype beside a good torch_dtype": {"torch_dtype": torch.float32, "dtype": "float23"},
    "a bad torch_dtype beside a good dtype": {"torch_dtype": "float23", "dtype": torch.float32},
    "float32": {"torch_dtype": torch.float32},
}

PARTS = ("visual", "q_proj", "lm_head")
"""Of Qwen-VL; the head is the one part that is found without the patch."""

WAYS = (("from_pretrained", True), ("from_pretrained", False), ("from_config", False))
"""With ``force_hf`` or not."""

QWEN_DAMAGES = ("names a tensor otherwise", "has a tensor of another shape")


def dtypes(auto_model, way, source, **request):
    if way == "from_config":
        source = transformers.AutoConfig.from_pretrained(source)
    plain = {"use_liger_kernel": False, "use_sdpa_patching": False, "attn_implementation": "eager"}
    model = getattr(auto_model.NeMoAutoModelForCausalLM, way)(source, **plain, **request)
    return sorted({str(weight.dtype) for weight in model.parameters()})


class Unbuildable(transformers.LlamaForCausalLM):
    def __init__(self, *_args, **_kwargs):
        raise NotImplementedError("cannot be built")


def unbuildable(auto_model, folder, **request):
    """Load where the class of the model raises."""
    auto = auto_model.NeMoAutoModelForCausalLM
    mine = type("Mine", (auto,), {"_model_mapping": {transformers.LlamaConfig: Unbuildable}})
    plain = {"use_liger_kernel": False, "use_sdpa_patching": False, "attn_implementation": "eager"}
    return str(mine.from_pretrained(folder, force_hf=True, **plain, **request))


def dtype_cases(auto_model, made):
    folder = str(made / "llama")
    requests = dict(OTHER_REQUESTS)
    for label, keyword in itertools.product(BAD_REQUESTS, ("torch_dtype", "dtype")):
        requests[f"{label}, {keyword}"] = {keyword: BAD_REQUESTS[label]}
    for (way, force_hf), (label, request) in itertools.product(WAYS, requests.items()):
        yield (
            f"{way}{', force_hf' * force_hf}: {label}",
            partial(dtypes, auto_model, way, folder, force_hf=force_hf, **request),
        )
    for damage in DAMAGES:
        source = str(made / f"llama {damage}")
        for keyword in ("torch_dtype", "dtype"):
            call = partial(dtypes, auto_model, "from_pretrained", source, force_hf=True, **{keyword: torch.float32})
            yield f"a checkpoint that {damage}, {keyword}", call
    nowhere = partial(dtypes, auto_model, "from_pretrained", str(made / "nowhere"), force_hf=True, dtype=torch.float32)
    yield "a checkpoint that is not there", nowhere
    yield "a class that raises", partial(unbuildable, auto_model, folder, dtype=torch.float32)


def kept(folder, *, is_peft):
    """Load a Qwen-VL checkpoint by the Checkpointer; return which tensors kept the values that they had."""
    from nemo_automodel.components.checkpoint import checkpointing

    model = qwen_vl_rules.tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.25)
    config = checkpointing.CheckpointingConfig(
        enabled=True,
        checkpoint_dir="",
        model_save_format="safetensors",
        model_cache_dir=folder,
        model_repo_id=folder,
        save_consolidated=False,
        is_peft=is_peft,
    )
    checkpointing.Checkpointer(config, 0, 0, 0).load_base_model(model, torch.device("cpu"), folder, folder)
    return sorted(name for name, weight in model.named_parameters() if bool((weight == 0.25).all()))


def qwen_cases(made):
    for damage, part in itertools.product(QWEN_DAMAGES, PARTS):
        yield f"{damage}, {part}", partial(kept, str(made / f"qwen {damage}, {part}"), is_peft=False)
    damage, part = QWEN_DAMAGES[0], PARTS[0]
    yield f"{damage}, {part}, PEFT", partial(kept, str(made / f"qwen {damage}, {part}"), is_peft=True)


def make_llama(made):
    (made / "llama").mkdir()
    dtype_requests.save_llama(made / "llama")
    for damage in DAMAGES:
        damaged(made / "llama", made / f"llama {damage}", damage, "q_proj")
    return made


def make_qwen(made):
    (made / "qwen").mkdir()
    qwen_vl_rules.save_sharded(qwen_vl_rules.tiny_model(), made / "qwen", files=2)
    for damage, part in itertools.product(QWEN_DAMAGES, PARTS):
        damaged(made / "qwen", made / f"qwen {damage}, {part}", damage, part)
    return made


if __name__ == "__main__":
    auto_model = cpu_for_cuda.install()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        cases = {"dtype": partial(dtype_cases, auto_model, make_llama(Path(folder)))}
        cases["qwen"] = partial(qwen_cases, make_qwen(Path(folder)))
        print(json.dumps({about: by_side(cases[about]) for about in sys.argv[1:]}))
