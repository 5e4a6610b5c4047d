"""Two gloo ranks on the CPU, as forks of the process that runs a probe."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TIMEOUT = 120.0


def run(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call a function in two ranks of one process group.

    Args:
        function: Takes nothing. Import what is heavy before, as forks that import it each take their time.

    Returns:
        What it returned in rank 0. If it raised there, the message by the name of the exception.

    Raises:
        RuntimeError: Rank 0 did not answer.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        answers = context.SimpleQueue()
        store = Path(folder, "store")
        ranks = [context.Process(target=_rank, args=(rank, store, function, answers)) for rank in range(2)]
        for process in ranks:
            process.start()
        ranks[0].join(_TIMEOUT)
        for process in ranks:
            process.kill()  # Rank 1 may wait for a rank that has raised.
            process.join()
        if answers.empty():
            raise RuntimeError("rank 0 did not answer")
        answer: dict[str, Any] = answers.get()
        return answer


def _rank(rank: int, store: Path, function: Callable[[], dict[str, Any]], answers: Any) -> None:
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        answer = function()
        torch.distributed.barrier()
    except Exception as error:  # noqa: BLE001 - told to the process that waits
        answer = {type(error).__name__: str(error).partition("\n")[0][:150]}
    if rank == 0:
        answers.put(answer)
    os._exit(0)
