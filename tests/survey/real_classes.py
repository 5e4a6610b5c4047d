"""Build some classes that the walk names, load them dummy by vLLM's own loader, and print what became of their tensors.

    python real_classes.py

Prints JSON: for each class, its file below `model_executor` if it is vLLM's, its tensors that are no parameters but in
the state dict, and those of them that hold another value after the dummy load, without the patches and with them.
"""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import torch

import nrl_patches
from nrl_patches.patches._shared.dummy_load import UNQUANTIZED

PATCH = "vllm.dummy_load_constants"


def of_granite_speech():
    from vllm.model_executor.models import granite_speech

    sizes = SimpleNamespace(hidden_dim=8, conv_expansion_factor=1, conv_kernel_size=3)
    yield "models/granite_speech.py", granite_speech.GraniteSpeechConformerConvModule(sizes)


def of_phi4mm():
    from vllm.model_executor.models import phi4mm_utils

    made = phi4mm_utils.ConvModule(8, 8, 8, 1, 3, 1, 0.0, batch_norm=True)
    yield "models/phi4mm_utils.py", made


def of_transformers():
    from transformers.models.gemma4 import modeling_gemma4
    from transformers.models.parakeet import modeling_parakeet

    clipped = SimpleNamespace(use_clipped_linears=True)
    yield None, modeling_gemma4.Gemma4ClippableLinear(clipped, 8, 8)
    sizes = SimpleNamespace(hidden_size=8, conv_kernel_size=3, hidden_act="silu", convolution_bias=False)
    yield None, modeling_parakeet.ParakeetEncoderConvolutionModule(sizes)


def classes():
    for family in (of_granite_speech, of_phi4mm, of_transformers):
        yield from family()


def fill(module):
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(module, UNQUANTIZED)
    after = module.state_dict()
    constants = sorted(before.keys() - dict(module.named_parameters()).keys())
    return constants, [name for name in constants if not torch.equal(before[name], after[name])]


def main():
    from vllm.model_executor.model_loader import dummy_loader  # noqa: F401 - is patched when it is imported

    report = {}
    for side in ("off", "on"):
        with nrl_patches.undo(PATCH) if side == "off" else nullcontext():
            for file, module in classes():
                constants, changed = fill(module)
                kept = report.setdefault(type(module).__name__, {"file": file, "constants": constants})
                kept[side] = changed
    print(json.dumps({"status": nrl_patches.status()[PATCH].state, "classes": report}))


if __name__ == "__main__":
    main()
