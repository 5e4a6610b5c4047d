"""A request that is aborted while its KV cache is loaded kills the engine when its last transfer ends.

Problem: an aborted request that is being loaded keeps its blocks until the load is over; a KV connector may ask to keep
    them until they are saved. `Scheduler._update_from_kv_xfer_finished` (v1/core/sched/scheduler.py) frees them at the
    first of the two reports, while the other transfer goes on, and asserts at the second that the request is there.
Hit by: rollouts that abort (off-policy cancels, timeouts, clients that leave) with a KV connector that saves what has
    finished: `LMCacheMPConnector` and `HF3FSKVConnector` do so for every request, and report both transfers (read);
    `MultiConnector` with one of them does (upstream's report). `AssertionError` in EngineCore, `EngineDeadError` for
    all requests, and in data parallel for all ranks.
Fix: the blocks are freed once, when both transfers have ended, as pull request 56089 does it. A report that nobody
    awaits, of a request that is gone or of a transfer that is over, is ignored with a warning.
Remove when: vLLM waits for both (pull request 56089, open) in every supported release. 0.33.0 does not.

prime-rl and others ignore the second report only: the load may then write into blocks that another request has got.
A report about a request that still runs stays an error, since nothing is freed that is in use. vLLM's maintainers want
no second report of one transfer from a connector at all; the warning names it.

Not covered: up to 0.15.1 an abort frees the blocks of a load at once, and only a report against the connector's
contract kills the engine. The probe has the real scheduler, and a connector that moves nothing; no engine was run.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import kv_transfers

patch = Patch(
    __name__,
    affected="vllm>=0.16.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/issues/46240",
        "https://github.com/vllm-project/vllm/pull/56089",
    ),
    opt_out="NRL_DISABLE_VLLM_KV_TRANSFER_AFTER_ABORT_PATCH",
    relies_on=("vllm.v1.core.sched.scheduler:Scheduler.finish_requests",),
)

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


def go_through_settled_requests(function: ast.FunctionDef) -> ast.FunctionDef:
    """Let both loops of the reports pass over requests that are gone, or that another transfer holds.

    Args:
        function: The syntax of ``Scheduler._update_from_kv_xfer_finished``.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It has other loops.
    """
    loops = [statement for statement in function.body if isinstance(statement, ast.For)]
    found = [ast.unparse(loop.iter).removeprefix("kv_connector_output.") for loop in loops]
    if found != ["finished_recving or ()", "finished_sending or ()"]:
        raise MismatchError("a loop over finished_recving and one over finished_sending", ", ".join(found) or "none")
    for loop, transfer in zip(loops, (kv_transfers.LOAD, kv_transfers.SAVE), strict=True):
        reports = ast.unparse(loop.iter)
        loop.iter = ast.parse(f"kv_transfers.settled(self, {reports}, {transfer!r})", mode="eval").body
    function.body[:0] = ast.parse("from nrl_patches.patches._shared import kv_transfers").body
    return function


patch.rewrite(f"{SCHEDULER}._update_from_kv_xfer_finished", go_through_settled_requests)


@patch.fix(f"{SCHEDULER}._free_request", guard=lambda free: mismatch(free, parameters="request delay_free_blocks"))
def note_the_load(free_request: Callable[..., Any]) -> Callable[..., Any]:
    """Build a method that notes on an aborted request that it is being loaded.

    Args:
        free_request: vLLM's ``Scheduler._free_request``.
    """

    def note_and_free(
        self: Any,
        request: Any,
        delay_free_blocks: Any = False,  # noqa: FBT002 - as vLLM has it
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if delay_free_blocks:
            kv_transfers.await_transfer(request, kv_transfers.LOAD)
        return free_request(self, request, delay_free_blocks, *args, **kwargs)

    return note_and_free


@patch.fix(f"{SCHEDULER}._connector_finished", guard=lambda ask: mismatch(ask, parameters="request"))
def note_the_save(connector_finished: Callable[..., Any]) -> Callable[..., Any]:
    """Build a method that notes on a request that is being loaded that the connector saves it too.

    Args:
        connector_finished: vLLM's ``Scheduler._connector_finished``.
    """

    def ask_and_note(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        delayed, parameters = connector_finished(self, request, *args, **kwargs)
        if delayed and kv_transfers.awaits(request, kv_transfers.LOAD):
            kv_transfers.await_transfer(request, kv_transfers.SAVE)
        return delayed, parameters

    return ask_and_note


@patch.probe
def second_transfer_kills_the_engine() -> Observation:
    """Abort a request during its load in the real scheduler, and report the ends of both transfers."""
    kind = kv_transfers.scheduler_class()
    if kind is None or "delay_free_blocks" not in inspect.signature(kind._free_request).parameters:
        return Observation(present=False, evidence={"absent": "an abort that leaves a load its blocks"})
    engine = kv_transfers.scheduler(saves=True)
    kv_transfers.abort_while_loading(engine, "aborted")
    kv_transfers.report(engine, load=["aborted"])
    try:
        kv_transfers.report(engine, save=["aborted"])
    except AssertionError:
        return Observation(present=True, evidence={"raised": "AssertionError"})
    return Observation(present=False, evidence={"raised": "", "left": str(list(engine.requests))})
