"""Packed rows on a GPU: how far their logits are from the same sequences alone, without the patches and with them.

    python packing.py [--not-compiled] [ATTENTION...]

One JSON object per model and attention: the largest difference with a mask of ones, in float32 and bfloat16, and by
inductor; and of gradients, relatively, with the parameter that has it. Flash attention has bfloat16 only. Attention
that is not installed, or refuses the model, is named with its error.
"""

import json
import sys
from contextlib import nullcontext

import torch
from packed_rows import gradient_gap, leak
from ways.packing import FAMILIES, build

import nrl_patches
from nrl_patches.patches._shared.quiet import quiet

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2")


LENGTHS = (70, 1, 57)


def leaks(family, attention):
    dtypes = [torch.bfloat16] if attention.startswith("flash") else [torch.float32, torch.bfloat16]
    found = {}
    for dtype in dtypes:
        model = build(family, attention).eval().to(dtype)
        gradient = gradient_gap(model, LENGTHS, ones=True)
        found[str(dtype).removeprefix("torch.")] = leak(model, LENGTHS, ones=True, use_cache=False), gradient
    if "--not-compiled" in sys.argv:
        return found
    torch._dynamo.reset()
    model = build(family, attention).eval().to(dtypes[0])
    model.forward = torch.compile(model.forward, dynamic=True)
    return found | {"compiled": leak(model, LENGTHS, ones=True, use_cache=False)}


def outcome(family, attention):
    try:
        with quiet():
            return leaks(family, attention)
    except Exception as error:  # noqa: BLE001 - any is what there is to say
        return f"{type(error).__name__}: {error}"[:160]


def main():
    import transformers
    from transformers import masking_utils  # noqa: F401 - so that its patches are applied

    device = torch.cuda.get_device_name()
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "device": device}))
    torch.set_default_device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    asked = [argument for argument in sys.argv[1:] if argument != "--not-compiled"]
    for family in FAMILIES:
        for attention in asked or ATTENTION:
            for side in ("off", "on"):
                with nrl_patches.undo() if side == "off" else nullcontext():
                    found = outcome(family, attention)
                print(json.dumps({"model": family, "attention": attention, side: found}), flush=True)


if __name__ == "__main__":
    main()
