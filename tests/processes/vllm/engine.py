"""Start the real ``vllm.LLM``, ask each of its processes, and print what they say.

    python engine.py [OPTION]...

Options: ``import`` imports nrl_patches in the main script; ``fork`` forks the children, for which a choice of vLLM's
CPU platform has to be taken back; ``two`` runs two workers; ``generate`` asks the engine for tokens instead;
``refused`` expects it not to start.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from processes.vllm import checkpoint
from processes.vllm.observed import add_told, observe

OPTIONS = {"import", "fork", "two", "generate", "refused"}


def start(folder, **kwargs):
    from vllm import LLM

    return LLM(
        model=str(folder),
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
        seed=0,
        **kwargs,
    )


def ask(engine):
    """Return what the processes say, by their part in the engine."""
    parts = {"front end": [observe()], "worker": engine.collective_rpc(observe)}
    if parts["worker"][0]["pid"] != os.getpid():
        parts["core"] = engine.collective_rpc("observe_core")
    return add_told(parts)


def generate(engine):
    """Return tokens, and what the command finds out about this process."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=4, temperature=0)
    (request,) = engine.generate([{"prompt_token_ids": [3, 5, 9]}], sampling, use_tqdm=False)
    return {"tokens": list(request.outputs[0].token_ids), **add_told({"front end": [{"pid": os.getpid()}]})}


def fork_children():
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_fork(cls, config):
        check(cls, config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_and_fork)


def main():
    options = set(sys.argv[1:])
    assert options <= OPTIONS
    if "import" in options:
        import nrl_patches  # noqa: F401
    if "fork" in options:
        fork_children()
    kwargs = {"tensor_parallel_size": 2} if "two" in options else {}
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
        from processes.vllm.executor import Executor

        kwargs["distributed_executor_backend"] = Executor
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.make(Path(folder))
        try:
            engine = start(folder, **kwargs)
        except Exception as error:
            if "refused" not in options:
                raise
            print(json.dumps({"refused": f"{type(error).__name__}: {error}"}))
            return
    found = generate(engine) if "generate" in options else ask(engine)
    engine.llm_engine.engine_core.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
