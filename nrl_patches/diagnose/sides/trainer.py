"""The trainer's side: the model of transformers, or of nemo-automodel, that scores, samples and packs."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from . import embeddings, files, streams  # Relative: the package has another name where this runs.

_BUDGET = 8192
"""Tokens in one forward pass, unless a single sequence has more."""

_ROWS = 1024
"""Rows of logits that are turned into log-probabilities at a time, in float32."""

_WORST = 5
_CONTEXT = 8

Rows = Sequence[Sequence[int]]


class Trainer:
    """The trainer of one job.

    Args:
        job: Its ``trainer`` has the arguments of ``from_pretrained``, its ``backend`` says whose that is.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job

    @cached_property
    def model(self) -> Any:
        """The model, on the GPU if there is one."""
        import torch  # noqa: PLC0415 - the patches come first
        import transformers  # noqa: PLC0415

        arguments = dict(self.job["trainer"])
        dtype = arguments.pop("dtype")
        older = self.job["backend"] == "nemo-automodel" or not hasattr(transformers.PreTrainedConfig, "dtype")
        arguments["torch_dtype" if older else "dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
        if self.job["backend"] == "nemo-automodel":
            from nemo_automodel import NeMoAutoModelForCausalLM as AutoModel  # noqa: PLC0415
        else:
            from transformers import AutoModelForCausalLM as AutoModel  # noqa: PLC0415
        model = AutoModel.from_pretrained(self.job["model"], **arguments)
        if "device_map" in arguments:
            return model.eval()  # It may be on several devices.
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def do(self, kind: str, task: Mapping[str, Any]) -> dict[str, Any]:
        """Do one task.

        Args:
            kind: Its kind.
            task: Its parameters.

        Returns:
            Its result.
        """
        import torch  # noqa: PLC0415

        with torch.no_grad():
            if kind == "prepare":
                trusts = bool(task["trust_remote_code"])
                return dict(streams.prepare(self.job["model"], task["text"], trust_remote_code=trusts))
            if kind == "embeddings":
                return dict(embeddings.inspect(self.job["model"], task))
            return {"sample": self._sample, "score": self._score, "packed": self._packed, "save": self._save}[kind](
                task
            )

    def _score(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Score what the engine has sampled, and show the tokens that it is furthest from in text."""
        found = files.read(task["sampled"])
        rows = [[*prompt, *new] for prompt, new in zip(found["prompts"], found["tokens"], strict=True)]
        starts = [len(prompt) for prompt in found["prompts"]]
        every = self._logprobs(rows)
        logprobs = [row[start - 1 :] for row, start in zip(every, starts, strict=True)]
        return {"logprobs": logprobs, "worst": self._worst(rows, starts, logprobs, found["logprobs"])}

    def _sample(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Sample from the trainer, and score that by a forward pass as training has it."""
        import torch  # noqa: PLC0415

        stream = files.read(self.job["streams"])["streams"][task["data"]]
        prompts = files.prompts(stream, task["batch"], task["prompt"])
        torch.manual_seed(task["seed"])
        given = torch.tensor(prompts, device=self.model.device)
        settings: dict[str, Any] = {"do_sample": task["temperature"] > 0, "pad_token_id": 0, "eos_token_id": None}
        if settings["do_sample"]:
            settings |= {"temperature": task["temperature"], "top_p": task["top_p"], "top_k": 0}
        new = {"max_new_tokens": task["new_tokens"], "min_new_tokens": task["new_tokens"]}
        rows = self.model.generate(given, attention_mask=torch.ones_like(given), **settings, **new).tolist()
        start = task["prompt"]
        return {
            "prompts": prompts,
            "tokens": [row[start:] for row in rows],
            "logprobs": [row[start - 1 :] for row in self._logprobs(rows)],
        }

    def _packed(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Score sequences alone, padded, and packed into one row, without a mask and with a mask of ones."""
        import torch  # noqa: PLC0415

        stream = files.read(self.job["streams"])["streams"][task["data"]]
        rows = [files.prompts(stream[29 * i :], 1, length)[0] for i, length in enumerate(task["lengths"])]
        alone = [self._logprobs([row])[0] for row in rows]
        longest = max(map(len, rows))
        ids, mask = (
            [[*row, *[0] * (longest - len(row))] for row in kind] for kind in (rows, [[1] * len(r) for r in rows])
        )
        padded = self._forward(torch.tensor(ids), attention_mask=torch.tensor(mask))
        row = torch.tensor([[token for row in rows for token in row]])
        positions = torch.tensor([[index for row in rows for index in range(len(row))]])
        variants = {"no mask": {}, "a mask of ones": {"attention_mask": torch.ones_like(row)}}
        found: dict[str, Any] = {"alone": alone, "padded": _cut(padded, [(i, 0, len(r)) for i, r in enumerate(rows)])}
        starts = [sum(map(len, rows[:index])) for index in range(len(rows))]
        for name, extra in variants.items():
            logprobs = self._forward(row, position_ids=positions, **extra)
            found[name] = _cut(logprobs, [(0, start, len(r)) for start, r in zip(starts, rows, strict=True)])
        return found

    def _save(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Save the trainer's weights in batches."""
        folder = Path(task["weights"])
        shutil.rmtree(folder, ignore_errors=True)
        size = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        self.model.save_pretrained(folder, max_shard_size=math.ceil(size / task["batches"]))
        return {"bytes": size, "batches": len(list(folder.glob("*.safetensors")))}

    def _logprobs(self, rows: Rows) -> list[list[float]]:
        """Return the log-probability of each token but the first; sequences of one length share a forward pass."""
        import torch  # noqa: PLC0415

        found: list[list[float]] = []
        for batch in _batches(rows):
            logprobs = self._forward(torch.tensor(batch))
            found += _cut(logprobs, [(index, 0, len(row)) for index, row in enumerate(batch)])
        return found

    def _forward(self, ids: Any, **inputs: Any) -> Any:
        """Return the log-probability of each token after the one before it, with a first column of zeros."""
        import torch  # noqa: PLC0415

        device = self.model.device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        ids = ids.to(device)
        logits = self.model(input_ids=ids, use_cache=False, **inputs).logits
        found = torch.zeros(ids.shape, dtype=torch.float32)
        for row in range(ids.shape[0]):
            for start in range(0, ids.shape[1] - 1, _ROWS):
                end = min(start + _ROWS, ids.shape[1] - 1)
                part = logits[row, start:end].float().log_softmax(-1)
                found[row, start + 1 : end + 1] = part.gather(-1, ids[row, start + 1 : end + 1, None])[:, 0].cpu()
        return found

    def _worst(self, rows: Rows, starts: Sequence[int], ours: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
        far = []
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            for place, (one, two) in enumerate(zip(mine, other, strict=True)):
                gap = abs(one - two)
                far.append((math.inf if math.isnan(gap) else gap, index, place, two, one))
        worst = []
        for gap, index, place, engine, trainer in sorted(far, reverse=True)[:_WORST]:
            at = starts[index] + place
            before = self._text(rows[index][max(0, at - _CONTEXT) : at])
            token = {"id": rows[index][at], "text": self._text(rows[index][at : at + 1]), "after": before}
            worst.append({"sequence": index, "position": at, "gap": gap, "engine": engine, "trainer": trainer} | token)
        return worst

    def _text(self, tokens: Sequence[int]) -> str:
        return "" if self._tokenizer is None else str(self._tokenizer.decode(list(tokens)))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer  # noqa: PLC0415

        try:
            return AutoTokenizer.from_pretrained(self.job["model"])
        except Exception:  # noqa: BLE001 - numbers say it too
            return None


def _batches(rows: Rows) -> Iterator[Rows]:
    start = 0
    while start < len(rows):
        length, end = len(rows[start]), start + 1
        while end < len(rows) and len(rows[end]) == length and (end - start + 1) * length <= _BUDGET:
            end += 1
        yield rows[start:end]
        start = end


def _cut(logprobs: Any, pieces: Sequence[tuple[int, int, int]]) -> list[list[float]]:
    return [logprobs[row, start + 1 : start + length].tolist() for row, start, length in pieces]


def main() -> None:
    """Do the job that the first argument names."""
    job = files.job_of(sys.argv)
    files.activate(job)
    files.serve(job, Trainer(job).do)
