"""200 steps of AdamW after ``NeMoAutoModelForCausalLM.from_pretrained(..., torch_dtype=torch.float32, force_hf=True)``.

    python dtype_learn.py

A tiny bfloat16 checkpoint learns eight random sequences by heart. Prints the loss of every step, and how many weights
ever moved. Of Automodel only the hard-coded CUDA device is replaced; see ``cpu_for_cuda.py``.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
import cpu_for_cuda

import nrl_patches  # noqa: F401 - the patch is what is tested
from nrl_patches.patches._shared.quiet import quiet

STEPS = 200
LEARNING_RATE = 3e-5  # of the size that policies are trained with


def save_checkpoint(folder):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=64, tie_word_embeddings=False, dtype=torch.bfloat16)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    auto_model = cpu_for_cuda.install()
    with quiet(), tempfile.TemporaryDirectory() as made:
        save_checkpoint(made)
        model = auto_model.NeMoAutoModelForCausalLM.from_pretrained(
            made,
            torch_dtype=torch.float32,
            force_hf=True,
            use_liger_kernel=False,
            use_sdpa_patching=False,
            attn_implementation="eager",
        )
    before = [weight.detach().clone() for weight in model.parameters()]
    tokens = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    moved = sum((old != new).sum().item() for old, new in zip(before, model.parameters(), strict=True))
    print(
        json.dumps(
            {
                "dtype": str(before[0].dtype),
                "losses": losses,
                "moved": moved,
                "weights": sum(weight.numel() for weight in before),
            }
        )
    )
