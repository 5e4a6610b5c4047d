"""Tokens on top of a filled cache on a GPU, by the kernels that are installed there.

    python filled_cache.py [MODEL...]

One JSON object per model and side (``off`` without the patches, ``on`` with them): the kernels, and how far the logits
of a row that is read in parts are from those of the whole row, relatively; in float32, in bfloat16, after a prompt that
``generate`` has read, and with gradients, of which there are those of the last part's embeddings.
"""

import inspect
import json
import logging
import sys
from contextlib import nullcontext

import torch
from linear_attention import attempted, delta_net, kernels, state_space

import nrl_patches
from nrl_patches.patches._shared import filled_cache, filled_hybrids
from nrl_patches.patches._shared.linear_attention_models import FAMILIES
from nrl_patches.patches._shared.quiet import quiet

ENDS = (70, 71, 128)
"""Of the parts of a row; the second is a single token."""

DELTA_NETS = {prefix: family for family, prefix in FAMILIES.items() if "qwen" in family}
STATE_SPACE = {
    "Mamba": {"state_size": 16},
    "FalconMamba": {"state_size": 16},
    "Mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 64},
    "Bamba": {},
    "FalconH1": {},
    "GraniteMoeHybrid": {},
    "NemotronH": {},
    "Zamba": {
        **filled_cache.FIELDS["Zamba"],
        "mamba_d_state": 16,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "use_mamba_kernels": True,
    },
    "Zamba2": {},
    "Jamba": {},
    "Lfm2": {},
}


def build(family):
    if family in DELTA_NETS:
        return delta_net(DELTA_NETS[family])
    return state_space(family, "eager", **STATE_SPACE[family])


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def in_parts(model, tokens):
    """How far the logits of a row in parts are from those of the whole row, without gradients."""
    with torch.no_grad():
        whole = model(input_ids=tokens, use_cache=False).logits
        return relative(filled_cache.parts(model, tokens, *ENDS)[0], whole)


def with_gradients(model, tokens):
    """How far the logits of the last part and the gradients of its embeddings are from those of the whole row."""
    prompt = ENDS[0]
    name = next(name for name in filled_cache.CACHES if name in inspect.signature(model.forward).parameters)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(tokens)
        _, cache = filled_cache.parts(model, tokens, prompt)
    how = {"position_ids": torch.arange(prompt, ENDS[-1])[None]} if name == "past_key_values" else {}
    last = embedded[:, prompt:].clone().requires_grad_()
    whole = model(inputs_embeds=torch.cat([embedded[:, :prompt], last], 1), use_cache=False).logits[:, prompt:]
    part = model(inputs_embeds=last, use_cache=True, **{name: cache}, **how).logits
    expected, found = (torch.autograd.grad(logits.float().logsumexp(-1).sum(), last)[0] for logits in (whole, part))
    return {"logits": relative(part.detach(), whole.detach()), "gradients": relative(found, expected)}


def outcome(family):
    tokens = 3 + torch.arange(ENDS[-1])[None] * 5 % 60
    attempts = {
        "float32": lambda: in_parts(build(family), tokens),
        "bfloat16": lambda: in_parts(build(family).to(torch.bfloat16), tokens),
        "with gradients": lambda: with_gradients(build(family), tokens),
    }
    if "Mamba" not in family:  # These take what `generate` has filled by another name.
        attempts["generate"] = lambda: filled_hybrids.gap(build(family))
    found = {}
    with quiet():
        for name, attempt in attempts.items():
            found[name] = attempted(attempt)
        return {"kernels": kernels(build(family)), **found}


def main():
    import transformers

    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("nrl_patches").addHandler(handler)
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}))
    torch.set_default_device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for family in sys.argv[1:] or (*STATE_SPACE, *DELTA_NETS):
        if not hasattr(transformers, f"{family}ForCausalLM"):
            continue
        build(family)  # Imports the module, so that its patches are applied.
        for side in ("off", "on"):
            with nrl_patches.undo() if side == "off" else nullcontext():
                print(json.dumps({"model": family, side: outcome(family), "said": said}), flush=True)
            said.clear()


if __name__ == "__main__":
    main()
