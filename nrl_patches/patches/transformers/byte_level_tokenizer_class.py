"""DeepSeek's tokenizers, and others made of bytes, are loaded as Llama 2's, which drops all spaces.

Problem: many checkpoints, DeepSeek's first, name `LlamaTokenizer` as the class of a `tokenizer.json` that works on
    bytes. From 5.3.0 on `AutoTokenizer` (models/auto/tokenization_auto.py) obeys, and the class puts SentencePiece's
    steps in the place of those of the file. A list of model types that are exempt has had `deepseek_v3` since 5.4.0,
    but 5.6.0 to 5.6.2 pass it over, `deepseek_v32` since 5.11.0, and cannot have `llama`, which is that of
    DeepSeek-Coder, DeepSeek-LLM and R1-Distill-Llama; since 5.13.0 some of these are known by their ids on the hub.
Hit by: `AutoTokenizer.from_pretrained`: other ids, without the spaces, and text with marks of bytes. Nothing is said;
    scores drop.
Fix: if the file works on bytes, it is loaded as it is, by `TokenizersBackend`, as in the fixed release.
Remove when: no supported release is older than transformers 5.22.0.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import tokenizer_files
from nrl_patches.patches._shared.quiet import quiet

patch = Patch(
    __name__,
    affected="transformers>=5.3.0,<5.22.0",
    upstream=(
        "https://github.com/huggingface/transformers/issues/45488",
        "https://github.com/huggingface/transformers/issues/44779",
        "https://github.com/huggingface/transformers/pull/45741",
        "https://github.com/huggingface/transformers/issues/46489",
    ),
    opt_out="NRL_DISABLE_BYTE_LEVEL_TOKENIZER_PATCH",
)

patch.rewrite(
    "transformers.models.auto.tokenization_auto:AutoTokenizer.from_pretrained",
    Edit(
        old="""
        # Check for auto_map early to handle dynamic tokenizers properly
        tokenizer_auto_map = None
        """,
        new="""
        # Check for auto_map early to handle dynamic tokenizers properly
        tokenizer_auto_map = None
        from nrl_patches.patches._shared.tokenizer_files import class_for
        tokenizer_config_class = class_for(
            tokenizer_config_class, config, tokenizer_config, pretrained_model_name_or_path, kwargs
        )
        """,
    ),
)


@patch.probe
def spaces_are_dropped() -> Observation:
    """Load a tiny tokenizer made of bytes as one of DeepSeek-V3 and as one of DeepSeek-Coder; compare the ids."""
    from transformers import AutoTokenizer

    evidence = {}
    for model_type in ("deepseek_v3", "llama"):
        with quiet(), TemporaryDirectory() as temporary:
            folder = Path(temporary, "tiny")
            tokenizer_files.write(folder, model_type, tokenizer_class="LlamaTokenizerFast")
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = tokenizer.encode(tokenizer_files.TEXT, add_special_tokens=False)
            evidence[f"{model_type}_as_in_file"] = ids == tokenizer_files.ids_of_file(folder)
    return Observation(not all(evidence.values()), evidence)
