"""The tokens of the prompts: real text, numbers in order, and what the model says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["prepare"]

_LONGEST = 400_000
"""Characters of a text: enough for sequences of 10,000 tokens from many places of it."""


def prepare(model: str, text: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """Find the model's files, and make the tokens of all prompts.

    Args:
        model: A folder or an id on the hub, which is downloaded.
        text: A file; empty for what Python ships of its own documentation.
        trust_remote_code: As transformers has it.

    Returns:
        ``model``, its folder; ``streams``, tokens by kind; ``positions`` and ``vocabulary``; ``problem``, why there is
        no real text.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - the patches come first

    folder = model
    if not Path(model).is_dir():
        from huggingface_hub import snapshot_download  # noqa: PLC0415

        folder = snapshot_download(model)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    inner = config.get_text_config()
    found: dict[str, Any] = {
        "model": folder,
        "positions": getattr(inner, "max_position_embeddings", None),
        "vocabulary": inner.vocab_size,
        "problem": "",
    }
    try:
        tokenize = _tokenizer(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001 - whatever it is, numbers do without it
        found["problem"] = f"no tokenizer: {type(error).__name__}: {error}"[:300]
        # Not the first ones, which often are special.
        found["streams"] = {"synthetic": list(range(inner.vocab_size // 4, inner.vocab_size))}
        return found
    streams = {"real": tokenize(_text(text)), "synthetic": tokenize(" ".join(map(str, range(1, 30_000))))}
    return found | {"streams": {kind: tokens for kind, tokens in streams.items() if tokens}}


def _tokenizer(folder: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)

    def tokenize(text: str) -> list[int]:
        # In pieces: a tokenizer warns of a text that is longer than its model's context, and some are quadratic.
        pieces = [text[start : start + 2000] for start in range(0, len(text), 2000)]
        return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]

    return tokenize


def _text(file: str) -> str:
    if file:
        return Path(file).read_text(encoding="utf-8", errors="replace")[:_LONGEST]
    from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte

    return "\n\n".join(topics[name] for name in sorted(topics))[:_LONGEST]
