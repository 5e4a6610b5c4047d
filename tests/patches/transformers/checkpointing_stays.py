"""Count how often the mixers run in a step, and compare its gradients with those of a step that is not checkpointed.

    python checkpointing_stays.py

Prints, by model, kind of checkpointing and whether the rows are packed: how often the mixer of the first layer ran, and
the relative error of the gradients.
"""

import json

import torch

import nrl_patches  # noqa: F401 - the patches are what is tested
from nrl_patches.patches._shared import linear_attention_models, state_space_models
from nrl_patches.patches._shared.quiet import quiet

BUILDS = {
    "Qwen3.5": lambda: linear_attention_models.tiny_model("qwen3_5"),
    "NemotronH": lambda: state_space_models.tiny_model("NemotronH"),
    "Lfm2": lambda: state_space_models.tiny_model("Lfm2"),
}
MIXERS = ("Qwen3_5GatedDeltaNet", "NemotronHMamba2Mixer", "Lfm2ShortConv")
LENGTHS = (5, 1, 6)
TOKENS = torch.arange(3, 15)[None]


def step(build, reentrant, *, packed):
    model = build().train()
    runs = []
    mixer = next(module for module in model.modules() if type(module).__name__ in MIXERS)
    mixer.register_forward_pre_hook(lambda *_: runs.append(1))
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    positions = torch.cat([torch.arange(n) for n in LENGTHS]) if packed else torch.arange(sum(LENGTHS))
    model(input_ids=TOKENS, position_ids=positions[None], labels=TOKENS, use_cache=False).loss.backward()
    return len(runs), {n: w.grad for n, w in model.named_parameters() if w.grad is not None}


def main():
    report = {}
    for name, build in BUILDS.items():
        for packed in (False, True):
            _, expected = step(build, None, packed=packed)
            for reentrant in (False, True):
                runs, found = step(build, reentrant, packed=packed)
                far = max(
                    float((found[n] - g).abs().max() / g.abs().max().clamp(min=1e-6)) if n in found else 1.0
                    for n, g in expected.items()
                )
                report[f"{name}, reentrant={reentrant}, packed={packed}"] = {"runs": runs, "far": far}
    return report


if __name__ == "__main__":
    with quiet():
        seen = main()
    print(json.dumps(seen))
