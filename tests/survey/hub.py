"""Write what Trainer's tests of gradient accumulation load from the hub, in a folder where they find it by its name.

What is not the hub's: the model is a Qwen2 of two layers with random weights, its tokenizer knows single bytes, and the
texts are random words.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

MODEL = "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"
TEXTS = "Salesforce/wikitext"
END = "<|endoftext|>"
CARD = """\
---
configs:
- config_name: wikitext-2-raw-v1
  data_files: train.txt
---
"""


def write(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate([*alphabet, END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder / MODEL)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(vocabulary), num_key_value_heads=2, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(folder / MODEL)

    lines = ["".join("abcdefgh "[i] for i in torch.randint(9, (length,))) for length in torch.randint(2, 40, (200,))]
    (folder / TEXTS).mkdir(parents=True)
    (folder / TEXTS / "train.txt").write_text("\n".join(f"a{line}" for line in lines), encoding="utf-8")
    (folder / TEXTS / "README.md").write_text(CARD, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
