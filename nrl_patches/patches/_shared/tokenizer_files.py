"""Which class the tokenizer of a checkpoint needs, and tiny checkpoints of tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "tokenizer.json"

FIND = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder", "_commit_hash")
"""What says where a file of a checkpoint is, of the keywords of ``from_pretrained``."""

TEXT = "How are you?\n  def f(x): 1234 é"

REMOTE = '''from transformers import PreTrainedTokenizer


class RemoteTokenizer(PreTrainedTokenizer):
    """One token for each byte of ASCII."""

    vocab_files_names = {"vocab_file": "bytes.model"}

    @property
    def vocab_size(self):
        return 128

    def get_vocab(self):
        return {chr(i): i for i in range(128)}

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token) % 128

    def _convert_id_to_token(self, index):
        return chr(index)
'''


def class_for(
    declared: str | None, config: Any, tokenizer_config: Mapping[str, Any], checkpoint: Any, keywords: Mapping[str, Any]
) -> str | None:
    """Return the name of the class to load instead of the declared one; the same name if it is right.

    Args:
        declared: The class that the tokenizer's configuration names, if any.
        config: The configuration of the model.
        tokenizer_config: The tokenizer's configuration.
        checkpoint: The folder of the checkpoint, or its id on the hub.
        keywords: Those of ``AutoTokenizer.from_pretrained``.
    """
    name = declared or getattr(config, "tokenizer_class", None)
    code = tokenizer_config.get("auto_map") or {}
    if name not in {"LlamaTokenizer", "LlamaTokenizerFast"} or isinstance(code, list) or "AutoTokenizer" in code:
        return declared
    if keywords.get("gguf_file") or not is_byte_level(checkpoint, keywords):
        return declared
    return "TokenizersBackend"


def is_byte_level(checkpoint: Any, keywords: Mapping[str, Any]) -> bool:
    """Whether the tokens in the file of a checkpoint's tokenizer are made of bytes and not of SentencePiece's marks.

    Args:
        checkpoint: The folder of the checkpoint, or its id on the hub.
        keywords: Those of ``AutoTokenizer.from_pretrained``.
    """
    from transformers.utils.hub import cached_file

    path = cached_file(
        checkpoint,
        FILE,
        **{name: keywords[name] for name in FIND if keywords.get(name) is not None},
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    text = "" if path is None else Path(path).read_text(encoding="utf-8")
    if '"ByteLevel"' not in text:
        return False
    file = json.loads(text)
    return any("ByteLevel" in _types(file.get(part)) for part in ("pre_tokenizer", "decoder"))


def _types(part: Any) -> set[str]:
    if not isinstance(part, dict):
        return set()
    inner = [*(part.get("pretokenizers") or ()), *(part.get("decoders") or ())]
    return {part.get("type", ""), *(name for step in inner for name in _types(step))}


def write(folder: Path, model_type: str, *, kind: str = "bytes", **tokenizer_config: Any) -> Path:
    """Write the tokenizer of a checkpoint.

    Args:
        folder: Where; it is made.
        model_type: That of the model.
        kind: What the file holds: ``bytes`` as DeepSeek's, or ``pieces`` as Llama 2's; ``none`` for no file.
        tokenizer_config: What the tokenizer's configuration says.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    if kind != "none":
        (_bytes() if kind == "bytes" else _pieces()).save(str(folder / FILE))
    if "auto_map" in tokenizer_config:
        (folder / "tokenization_remote.py").write_text(REMOTE, encoding="utf-8")
        (folder / "bytes.model").write_text("bytes", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    return folder


def ids_of_file(folder: Path) -> list[int]:
    """Return what the file itself, without transformers, makes of ``TEXT``.

    Args:
        folder: That of the checkpoint.
    """
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / FILE)).encode(TEXT, add_special_tokens=False).ids
    return ids


def _bytes() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("o", "u"), ("1", "2"), ("12", "3"), ("123", "4")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    steps = [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # A token may have the name of a step.
    tokens = ["<unk>", "<s>", "</s>", *sorted({*TEXT.replace(" ", "▁")}), "▁a", "ByteLevel"]
    vocab = {token: i for i, token in enumerate(tokens)}
    model = {"vocab": vocab, "merges": [("▁", "a")], "unk_token": tokens[0], "fuse_unk": True, "byte_fallback": True}
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer
