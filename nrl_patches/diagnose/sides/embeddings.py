"""Rows of the embeddings that no training has reached, read from safetensors a block of rows at a time."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["inspect"]

_BLOCK = 16 * 2**20
"""Bytes of rows in memory at a time."""

_INPUT = ("embed_tokens.weight", "embeddings.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
_OUTPUT = ("lm_head.weight", "output.weight", "embed_out.weight", "output_layer.weight")
_SHOWN = 20


def inspect(folder: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """Look at every row of the input and output embeddings of a checkpoint.

    Args:
        folder: The folder of the checkpoint.
        task: ``zero``, the norm below which a row is near zero; ``identical``, the standard deviation below which its
            values are all alike.

    Returns:
        ``tensors``, what was found in each; ``tied``; ``peak``, the memory of this process and what it was before.
    """
    before = _peak()
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    inner = next((config[name] for name in ("text_config", "llm_config") if name in config), config)
    tied = bool(config.get("tie_word_embeddings", inner.get("tie_word_embeddings", True)))
    tensors = {}
    for name, rows in _embeddings(folder, int(inner.get("vocab_size") or 0)):
        kind = "output" if name.endswith(_OUTPUT) else "input"
        tensors[name] = {"kind": kind} | _look(rows, float(task["zero"]), float(task["identical"]))
    if not tensors:
        raise ValueError("no embeddings in *.safetensors")
    for found in tensors.values():
        found["tokens"] = _texts(folder, sorted({*found["zero"], *found["identical"]})[:_SHOWN])
    return {"tensors": tensors, "tied": tied, "peak": {"before": before, "after": _peak(), "block": _BLOCK}}


def _embeddings(folder: str, vocabulary: int) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open  # noqa: PLC0415

    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no dict
                rows = tensors.get_slice(name)
                shape = rows.get_shape()
                if len(shape) == 2 and (name.endswith((*_INPUT, *_OUTPUT)) or shape[0] == vocabulary):  # noqa: PLR2004
                    yield name, rows


def _look(rows: Any, zero: float, identical: float) -> dict[str, Any]:
    count, width = rows.get_shape()
    step = max(1, _BLOCK // (4 * width))
    found: dict[str, Any] = {"rows": count, "width": width, "zero": [], "identical": [], "nan": []}
    norms: list[float] = []
    seen: dict[int, int] = {}
    copies: list[int] = []
    for start in range(0, count, step):
        block = rows[start : min(start + step, count)].float()
        norm, spread = block.norm(dim=1), block.std(dim=1, correction=0)
        for kind, mask in (("zero", norm < zero), ("identical", spread < identical), ("nan", norm.isnan())):
            found[kind] += [start + index for index in mask.nonzero().flatten().tolist()]
        for index, row in enumerate(block.numpy(), start):
            first = seen.setdefault(hash(row.tobytes()), index)
            copies += [index] if first != index else []
        norms += norm.tolist()
    healthy = sorted(norm for norm in norms if norm >= zero)
    return found | {
        "copies": copies,
        "norm": {"min": min(norms), "median": healthy[len(healthy) // 2] if healthy else 0.0, "max": max(norms)},
    }


def _texts(folder: str, tokens: list[int]) -> dict[str, str]:
    if not tokens:
        return {}
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415

        tokenizer = AutoTokenizer.from_pretrained(folder)
        return {str(token): str(tokenizer.convert_ids_to_tokens(token)) for token in tokens}
    except Exception:  # noqa: BLE001 - the rows are named by their numbers then
        return {}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
