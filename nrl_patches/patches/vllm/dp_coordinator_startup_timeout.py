"""A data parallel engine gives up if its coordinator takes longer than a fixed time to start.

Problem: `DPCoordinator._wait_for_zmq_addrs` (v1/engine/coordinator.py) waits 30 s for its process, 120 s from 0.23.0
    on, and no variable changes that. Engines have `VLLM_ENGINE_READY_TIMEOUT_S`, 600 s.
Hit by: `data_parallel_size` of 2 and more where the process is spawned and imports slowly, as on a network file system
    or while the engines of the node read weights: `DP Coordinator process failed to report ZMQ addresses`.
Fix: it waits as long as for engines, by the same variable, but never shorter than before.
Remove when: the time can be set (vLLM pull request 43611, open) in every supported release. In 0.33.0 it cannot.

A coordinator that dies is noticed at once, as before; one that hangs is noticed later. Up to 0.18.1 nothing is waited
for. prime-rl replaces the same method, with 300 s and a variable of its own.

The probe calls the real method, whose process, pipe and clock are replaced: how long it would wait was measured, not
waited for, and no engine was started.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError

patch = Patch(
    __name__,
    affected="vllm>=0.19.0,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/37452",
        "https://github.com/vllm-project/vllm/pull/42343",
        "https://github.com/vllm-project/vllm/pull/43611",
    ),
    opt_out="NRL_DISABLE_VLLM_DP_COORDINATOR_STARTUP_TIMEOUT_PATCH",
)

SLOW = 599.0
"""Seconds that the probe's coordinator takes to start: less than vLLM waits for an engine."""


def wait_as_for_engines(function: ast.FunctionDef) -> ast.FunctionDef:
    """Let the variable for engines say how long to wait, where it says longer than the constant.

    Args:
        function: The syntax of ``DPCoordinator._wait_for_zmq_addrs``.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It has not the one constant.
    """
    named: list[ast.keyword | ast.Assign] = [
        node
        for node in ast.walk(function)
        if isinstance(getattr(node, "value", None), ast.Constant)
        and (
            (isinstance(node, ast.keyword) and node.arg == "timeout")
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "timeout")
        )
    ]
    if len(named) != 1:
        raise MismatchError("one constant timeout", f"{len(named)} of them")
    (place,) = named
    place.value = ast.parse(f"max({ast.unparse(place.value)}, envs.VLLM_ENGINE_READY_TIMEOUT_S)", mode="eval").body
    function.body[:0] = ast.parse("from vllm import envs").body
    return function


patch.rewrite("vllm.v1.engine.coordinator:DPCoordinator._wait_for_zmq_addrs", wait_as_for_engines)


@patch.probe
def slow_coordinator_is_given_up() -> Observation:
    """Have the real method wait for a process that reports late; its clock is replaced, so nothing really waits."""
    if find_spec("vllm.v1") is None or find_spec("vllm.v1.engine.coordinator") is None:
        return Observation(present=False, evidence={"absent": "vllm.v1.engine.coordinator"})
    import multiprocessing.connection

    from vllm.v1.engine.coordinator import DPCoordinator

    if not hasattr(DPCoordinator, "_wait_for_zmq_addrs"):
        return Observation(present=False, evidence={"absent": "DPCoordinator._wait_for_zmq_addrs"})
    waited: list[float] = []

    def wait(objects: list[Any], timeout: float) -> list[Any]:
        waited.append(timeout)
        return objects[:1] if timeout >= SLOW else []

    coordinator = object.__new__(DPCoordinator)
    coordinator.proc = SimpleNamespace(sentinel=object())
    pipe = SimpleNamespace(recv=lambda: ("front", "output", "publish"), close=lambda: None)
    given_up = False
    with mock.patch.object(multiprocessing.connection, "wait", wait):
        try:
            coordinator._wait_for_zmq_addrs(pipe)
        except RuntimeError:
            given_up = True
    return Observation(given_up, {"seconds": str(waited[0])})
