"""The dtype that Mamba-2 mixers project, on a GPU with mamba-ssm and causal-conv1d: how far kernels take them.

    python kernel_dtype.py

One JSON object per mixer and change: how far the path with kernels is from that without, relatively, without the
patches and with them, or the error of it. Nothing is replaced, but for the projection that has a weight of bytes, which
stands for one that is quantised to 4 bits.
"""

import json
from contextlib import nullcontext

import torch

import nrl_patches
from nrl_patches.patches._shared import mamba2_kernels, state_space_models
from nrl_patches.patches._shared.quiet import quiet


def nemotron():
    wider = {"mamba_head_dim": 16, "ssm_state_size": 16, "chunk_size": 64}
    return state_space_models.tiny_model("NemotronH", **wider).model.layers[0].mixer


def unchanged(mixer):
    return mixer.to(torch.bfloat16)


def apart(build, change):
    with torch.device("cpu"):
        mixer = change(build())
    mixer = mixer.to("cuda")
    if hasattr(mixer.out_proj, "unpacked"):
        mixer.out_proj.unpacked = mixer.out_proj.unpacked.cuda()
    hidden = torch.randn(2, 6, mixer.in_proj.in_features, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    with torch.no_grad():
        one, two = mixer.cuda_kernels_forward(hidden).float(), mixer.torch_forward(hidden).float()
    return float((one - two).norm() / two.norm())


def main():
    import transformers
    from transformers.models.nemotron_h import modeling_nemotron_h  # noqa: F401 - so that its patches are applied
    from transformers.models.zamba2 import modeling_zamba2  # noqa: F401

    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}))
    applied = [p for p, s in nrl_patches.status().items() if s.state == "applied"]
    print(json.dumps([p for p in applied if p.endswith("kernel_dtype")]))
    for build in (mamba2_kernels.zamba2, nemotron):
        for change in (unchanged, mamba2_kernels.float32_norm, mamba2_kernels.packed_projection):
            found = {"mixer": build.__name__, "change": change.__name__}
            for side in ("off", "on"):
                with nrl_patches.undo() if side == "off" else nullcontext(), quiet():
                    try:
                        found[side] = apart(build, change)
                    except Exception as error:  # noqa: BLE001 - any is what there is to say
                        found[side] = f"{type(error).__name__}: {error}"[:160]
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
