"""Packed rows on a GPU: how far their logits are from the same sequences alone, without the patches and with them.

    python packing.py

One JSON object per model and attention: the largest difference with a mask of ones, in float32 and bfloat16, and by
inductor. Attention that is not installed, or refuses the model, is named with its error.
"""

import json
from contextlib import nullcontext

import torch
from ways.packing import FAMILIES, build

import nrl_patches
from nrl_patches.patches._shared.packing import leak
from nrl_patches.patches._shared.quiet import quiet

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2")


def leaks(family, attention):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = build(family, attention).eval().to(dtype)
        found[str(dtype).removeprefix("torch.")] = leak(model, ones=True, use_cache=False)
    torch._dynamo.reset()
    model = build(family, attention).eval()
    model.forward = torch.compile(model.forward, dynamic=True)
    return found | {"compiled": leak(model, ones=True, use_cache=False)}


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
    for family in FAMILIES:
        for attention in ATTENTION:
            applied = [p for p, s in nrl_patches.status().items() if s.state == "applied"]
            for side in ("off", "on"):
                with nrl_patches.undo(*applied) if side == "off" else nullcontext():
                    found = outcome(family, attention)
                print(json.dumps({"model": family, "attention": attention, side: found}), flush=True)


if __name__ == "__main__":
    main()
