"""Write a model with random weights and a tokenizer of its own: nothing is downloaded.

    python build_model.py FOLDER [SIZE] [FAULT]...

SIZE is `tiny` (Gemma 3's), `mistral`, `qwen3` or `qwen3-next`, for the tests; on a GPU `1b`, `4b` (Gemma 3's) or `7b`
(Qwen2's), in bfloat16. Faults, of `tiny`:
`scrambled` shuffles one weight, `nan` puts a NaN into the embedding of the digit 7, `untrained` has rows of zeros.

The weights are as large as they must be for log-probabilities that differ between tokens.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 512,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "sliding_window": 32,
    "query_pre_attn_scalar": 64,
    "tie_word_embeddings": False,
}
ORDINARY = {name: value for name, value in TINY.items() if name != "query_pre_attn_scalar"}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
SHAPES = {
    "tiny": (t.Gemma3TextConfig, TINY),
    "mistral": (t.MistralConfig, ORDINARY),
    "qwen3": (t.Qwen3Config, ORDINARY),
    "qwen3-next": (t.Qwen3NextConfig, ORDINARY | HYBRID),
    "1b": (
        t.Gemma3TextConfig,
        {
            "hidden_size": 1152,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 6912,
            "vocab_size": 32768,
            "sliding_window": 512,
        },
    ),
    "4b": (
        t.Gemma3TextConfig,
        {
            "hidden_size": 2560,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 10240,
            "vocab_size": 32768,
            "sliding_window": 1024,
        },
    ),
    "7b": (
        t.Qwen2Config,
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 32768,
            "tie_word_embeddings": False,
        },
    ),
}


def make_tokenizer(folder, vocabulary):
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Digits are tokens of their own, so that numbers and text have few tokens in common.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    special = dict(zip(("pad_token", "eos_token"), ("<pad>", "<eos>"), strict=True))
    made = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    made.save_pretrained(folder)
    return made


@torch.no_grad()
def fill(model):
    generator = torch.Generator(model.device).manual_seed(0)
    for name, weight in model.named_parameters():
        # Gemma's norms add 1 to their weight; the others multiply by it.
        one = "norm" in name and "gemma" not in model.config.model_type
        scale = 0.1 if weight.ndim == 1 else 1.5 * weight.shape[-1] ** -0.5
        weight.normal_(0, scale, generator=generator).add_(one)


@torch.no_grad()
def spoil(model, fault, tokenizer):
    if fault == "scrambled":
        weight = model.model.layers[1].mlp.down_proj.weight
        weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))])
    elif fault == "nan":
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("7")] = torch.nan
    elif fault == "untrained":
        model.lm_head.weight[[7, 8, 9, 400]] = 0
        model.model.embed_tokens.weight[20] = 0.5
        model.model.embed_tokens.weight[31] = model.model.embed_tokens.weight[30]
    else:
        raise ValueError(fault)


def main():
    folder, size, *faults = [*sys.argv[1:], "tiny"][: max(2, len(sys.argv) - 1)]
    kind, shape = SHAPES[size]
    tokenizer = make_tokenizer(folder, shape["vocab_size"])
    config = kind(**{"max_position_embeddings": 16384} | shape)
    on_gpu = size[0].isdigit()
    with torch.device("cuda" if on_gpu else "cpu"):
        model = t.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    fill(model)
    for fault in faults:
        spoil(model, fault, tokenizer)
    model.save_pretrained(folder, max_shard_size="4GB")
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size / 1e9:.3g} billion parameters in {Path(folder)}")


if __name__ == "__main__":
    main()
