"""A tiny random Gemma 3 with a tokenizer in which one word is one token."""

from patches.vllm import tiny


def make(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tiny.make("gemma3", folder)
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(128)}, "t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "t0", "unk_token": "t0", "eos_token": "t1", "bos_token": "t2"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
