"""Rows of the embeddings that no training has reached, read from safetensors a block of rows at a time.

The format is that of https://github.com/huggingface/safetensors: the size of the header, the header as JSON, the data.
"""

from __future__ import annotations

import json
import math
import resource
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["inspect"]

_BLOCK = 16 * 2**20
"""Bytes of rows in memory at a time."""

_INPUT = ("embed_tokens.weight", "embeddings.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
_OUTPUT = ("lm_head.weight", "output.weight", "embed_out.weight", "output_layer.weight")
_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_SHOWN = 20


def inspect(folder: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """Look at every row of the input and output embeddings of a checkpoint.

    Args:
        folder: The folder of the checkpoint.
        task: ``zero``, the norm below which a row is near zero; ``identical``, the standard deviation below which its
            values are all alike.

    Returns:
        ``tensors``, what was found in each; ``tied``; ``peak``, the memory of this process and what it was before.

    Raises:
        ValueError: There are none in safetensors.
    """
    import torch  # noqa: F401, PLC0415 - not part of what reading takes

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
    peak = {"before": before, "after": _peak(), "block": _BLOCK}
    for found in tensors.values():
        found["tokens"] = _texts(folder, sorted({*found["zero"], *found["identical"]})[:_SHOWN])
    return {"tensors": tensors, "tied": tied, "peak": peak}


class _Rows(NamedTuple):
    """A matrix in a safetensors file."""

    file: Path
    start: int
    shape: tuple[int, int]
    dtype: Any

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """Yield the number of the first row and the rows, a block at a time."""
        import torch  # noqa: PLC0415

        count, width = self.shape
        row = width * self.dtype.itemsize
        step = max(1, _BLOCK // row)
        # Read rather than mapped: mapped pages stay with the process, as many as there is memory for.
        with self.file.open("rb", buffering=0) as data:
            data.seek(self.start)
            for start in range(0, count, step):
                size = min(step, count - start) * row
                block = bytearray()
                while len(block) < size:
                    part = data.read(size - len(block))
                    if not part:
                        raise ValueError(f"{self.file.name} ends before its tensors do")
                    block += part
                yield start, torch.frombuffer(block, dtype=self.dtype).view(-1, width)


def _embeddings(folder: str, vocabulary: int) -> Iterator[tuple[str, _Rows]]:
    import torch  # noqa: PLC0415

    dtypes = {name: getattr(torch, there) for name, there in _DTYPES.items() if hasattr(torch, there)}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as data:
            (size,) = struct.unpack("<Q", data.read(8))
            header: dict[str, Any] = json.loads(data.read(size))
        for name, found in header.items():
            shape = found.get("shape", ())
            known = name.endswith((*_INPUT, *_OUTPUT)) or shape[:1] == [vocabulary]
            if len(shape) == 2 and known and found["dtype"] in dtypes:  # noqa: PLR2004
                start = 8 + size + found["data_offsets"][0]
                yield name, _Rows(file, start, (shape[0], shape[1]), dtypes[found["dtype"]])


def _look(rows: _Rows, zero: float, identical: float) -> dict[str, Any]:
    count, width = rows.shape
    found: dict[str, Any] = {"rows": count, "width": width, "zero": [], "identical": [], "copies": [], "nan": []}
    norms: list[float] = []
    seen: dict[int, int] = {}
    for start, read in rows.blocks():
        block = read.float()
        norm, spread = block.norm(dim=1), block.std(dim=1, correction=0)
        for kind, mask in (("zero", norm < zero), ("identical", spread < identical), ("nan", norm.isnan())):
            found[kind] += [start + index for index in mask.nonzero().flatten().tolist()]
        for index, row in enumerate(block.numpy(), start):
            if seen.setdefault(hash(row.tobytes()), index) != index:
                found["copies"].append(index)
        norms += norm.tolist()
    finite = sorted(norm for norm in norms if not math.isnan(norm)) or [math.nan]
    return found | {"norm": {"min": finite[0], "median": finite[len(finite) // 2], "max": finite[-1]}}


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
