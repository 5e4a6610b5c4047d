"""The engine's side: a real ``vllm.LLM`` that samples, scores, and is asked for what the diagnostics need."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import files  # Relative: the package has another name where this runs.

_BEST = 5
"""How many log-probabilities of a step are compared where two runs may choose different tokens."""

Tokens = Sequence[int]


class Engine:
    """The engine of one job.

    Args:
        job: Its ``engine`` has the arguments of ``vllm.LLM``.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        from vllm import LLM  # noqa: PLC0415 - the patches come first

        self.job = job
        arguments = _as_this_release_has_them(job["engine"])
        self.llm = LLM(model=job["model"], worker_extension_cls="nrl_patches_sides.worker.Worker", **arguments)
        self.streams = files.read(job["streams"])

    def do(self, kind: str, task: Mapping[str, Any]) -> dict[str, Any]:
        """Do one task with an empty prefix cache.

        Args:
            kind: Its kind.
            task: Its parameters.

        Returns:
            Its result.
        """
        self.llm.reset_prefix_cache()
        kinds: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "sample": self._sample,
            "score": self._score,
            "limit": self._limit,
            "decode": self._decode,
            "prefix": self._prefix,
            "observe": self._observe,
            "refit": self._refit,
        }
        result = kinds[kind](task)
        workers = self.llm.collective_rpc("diagnose_applied")
        return result | {"applied": sorted({*files.applied(), *(name for worker in workers for name in worker)})}

    def _sample(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Sample from the engine."""
        prompts = self._prompts(task)
        outputs = self._generate(prompts, task)
        return {
            "prompts": prompts,
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "logprobs": [_chosen(output.outputs[0]) for output in outputs],
        }

    def _score(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Score what the trainer has sampled."""
        found = files.read(task["sampled"])
        return {"logprobs": self._logprobs(found["prompts"], found["tokens"])}

    def _limit(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for more tokens than fit behind prompts of several lengths."""
        limit = self.job["engine"]["max_model_len"]  # What was asked for: the engine's own may be another.
        cases = []
        for left in task["left"]:
            (prompt,) = files.prompts(self._stream(task), 1, max(1, limit - left))
            try:
                (output,) = self._generate([prompt], {"new_tokens": left + task["beyond"]})
            except Exception as refused:  # Its class differs between releases.
                if "max" not in str(refused):
                    raise
                cases.append({"prompt": len(prompt), "refused": str(refused)[:200]})
                continue
            cases.append({"prompt": len(prompt), "new": len(output.outputs[0].token_ids)})
        return {"limit": limit, "cases": cases}

    def _decode(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Generate, and score the same tokens by one prefill pass."""
        found = self._sample(task)
        self.llm.reset_prefix_cache()
        return found | {"prefill": self._logprobs(found["prompts"], found["tokens"])}

    def _prefix(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Generate the second turn of conversations with the first in the cache, and without."""
        prompts = self._prompts(task)
        first = self._generate(prompts, task)
        user = files.prompts(self._stream(task)[::-1], len(prompts), task["turn"])
        turns = [
            [*prompt, *output.outputs[0].token_ids, *more]
            for prompt, output, more in zip(prompts, first, user, strict=True)
        ]
        cached = self._generate(turns, task, best=_BEST)
        self.llm.reset_prefix_cache()
        # One at a time: nothing of one conversation may be in the cache of the next.
        plain = []
        for turn in turns:
            plain += self._generate([turn], task, best=_BEST)
            self.llm.reset_prefix_cache()
        return {
            "enabled": bool(self.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching),
            "hits": [[output.num_cached_tokens or 0 for output in outputs] for outputs in (cached, plain)],
            "first": [_chosen(output.outputs[0]) for output in first],
            "cached": [_steps(output.outputs[0]) for output in cached],
            "plain": [_steps(output.outputs[0]) for output in plain],
        }

    def _observe(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Score prompts and continue them greedily; with checksums of the weights, if asked for."""
        prompts = self._prompts(task)
        found: dict[str, Any] = {}
        if task.get("tensors"):
            found["tensors"] = self.llm.collective_rpc("diagnose_tensors")
        # Which prompts share a step depends on time, and changes rounding: what must be equal goes one at a time.
        batches = [[prompt] for prompt in prompts] if task.get("tensors") else [prompts]
        outputs, scored = [], []
        for batch in batches:
            outputs += self._generate(batch, task, best=_BEST)
            self.llm.reset_prefix_cache()
            scored += self._logprobs([prompt[:1] for prompt in batch], [prompt[1:] for prompt in batch])
            self.llm.reset_prefix_cache()
        config = self.llm.llm_engine.vllm_config.compilation_config
        mode = {name: str(getattr(config, name, None)) for name in ("mode", "level", "backend", "cudagraph_mode")}
        steps = [_steps(output.outputs[0]) for output in outputs]
        return found | {"prompt": scored, "steps": steps, "compilation": mode}

    def _refit(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Load the trainer's weights into an engine that was started with noise, and observe it."""
        before = self.llm.collective_rpc("diagnose_tensors")
        batches = self.llm.collective_rpc("diagnose_refit", args=(task["weights"],))
        return self._observe({**task, "tensors": True}) | {"before": before, "batches": batches[0]}

    def _stream(self, task: Mapping[str, Any]) -> list[int]:
        stream: list[int] = self.streams["streams"][task["data"]]
        return stream

    def _prompts(self, task: Mapping[str, Any]) -> list[list[int]]:
        found: list[list[int]] = files.prompts(self._stream(task), task["batch"], task["prompt"])
        return found

    def _generate(self, prompts: Sequence[Tokens], task: Mapping[str, Any], best: int = 0) -> list[Any]:
        from vllm import SamplingParams  # noqa: PLC0415

        sampling = SamplingParams(
            temperature=task.get("temperature", 0.0),
            top_p=task.get("top_p", 1.0),
            seed=task.get("seed"),
            max_tokens=task["new_tokens"],
            logprobs=best,
            ignore_eos=True,
            detokenize=False,
        )
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found: list[Any] = self.llm.generate(given, sampling, use_tqdm=False)
        return found

    def _logprobs(self, prompts: Sequence[Tokens], tokens: Sequence[Tokens]) -> list[list[float]]:
        from vllm import SamplingParams  # noqa: PLC0415

        sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        given = [{"prompt_token_ids": [*prompt, *new]} for prompt, new in zip(prompts, tokens, strict=True)]
        outputs = self.llm.generate(given, sampling, use_tqdm=False)
        return [
            [_of(step, token) for step, token in zip(output.prompt_logprobs[len(prompt) :], new, strict=True)]
            for output, prompt, new in zip(outputs, prompts, tokens, strict=True)
        ]


def _as_this_release_has_them(arguments: Mapping[str, Any]) -> dict[str, Any]:
    from vllm.config import CompilationConfig  # noqa: PLC0415

    found = dict(arguments)
    chosen = found.get("compilation_config")
    if isinstance(chosen, dict) and "mode" in chosen and not hasattr(CompilationConfig, "mode"):
        older = {"level": chosen["mode"], "full_cuda_graph": "FULL" in str(chosen.get("cudagraph_mode"))}
        found["compilation_config"] = older
    return found


def _of(step: Mapping[int, Any] | None, token: int) -> float:
    return math.nan if step is None or token not in step else float(step[token].logprob)


def _chosen(output: Any) -> list[float]:
    return [_of(step, token) for step, token in zip(output.logprobs, output.token_ids, strict=True)]


def _steps(output: Any) -> list[dict[str, Any]]:
    return [
        {"token": token, "best": {str(other): float(found.logprob) for other, found in step.items()}}
        for step, token in zip(output.logprobs, output.token_ids, strict=True)
    ]


def main() -> None:
    """Do the job that the first argument names."""
    job = files.job_of(sys.argv)
    files.activate(job)
    engine = Engine(job)
    # After an error vLLM may wait for its core forever; another process goes on.
    files.serve(job, engine.do, until_error=True)
    engine.llm.llm_engine.engine_core.shutdown()
