"""The Ray executor promises rank 0 a port and then takes it itself.

Problem: `RayExecutorV2._init_executor` (v1/executor/ray_executor_v2.py) looks for a free port for rank 0's TCPStore,
    builds the queue between the nodes, and rank 0 opens the store much later. With `VLLM_PORT` set both searches begin
    there, and the queue, which has a TCP socket if the engine spans nodes, takes the port that the store was promised.
Hit by: engines that span nodes, with `VLLM_PORT` set: `DistNetworkError: … EADDRINUSE` at every start. From 0.25.0 on
    not where ports below 1024 may be opened, as by root: the store's port is then searched for from 100 on.
Fix: the port is looked for when the queue has its own; nothing in between uses it. `VLLM_PORT` and the windows of data
    parallel engines keep their meaning. Only the driver runs this code.
Remove when: every supported vLLM is 0.28.0 or newer, whose queue takes a port that the kernel chooses.

Not covered: two engines of one node with the same `VLLM_PORT`, of which neither spans nodes, may still be sent to one
port; 0.29.0 ended that. NeMo RL rewrites the file on disk (`_patch_vllm_ray_executor_v2_tcpstore_port`): from 0.25.0
on it searches from `VLLM_PORT + 32` on, also for data parallel engines. Where it did, both go together.
"""

from __future__ import annotations

import ast
import os
from datetime import timedelta
from importlib.util import find_spec
from unittest import mock

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import free_ports, ray_driver

patch = Patch(
    __name__,
    affected="vllm>=0.20.0,<0.28.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/50960",
        "https://github.com/vllm-project/vllm/pull/50969",
    ),
    opt_out="NRL_DISABLE_VLLM_RAY_EXECUTOR_TCP_STORE_PORT_PATCH",
)


def choose_the_port_after_the_queue(function: ast.FunctionDef) -> ast.FunctionDef:
    """Move the choice of the port behind the statement that needs the queue.

    Args:
        function: The syntax of ``RayExecutorV2._init_executor``.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It has not the statements, or not in this order.
    """
    body = function.body
    assigned = [ast.unparse(s.targets[0]) if isinstance(s, ast.Assign) else "" for s in body]
    names = ("distributed_init_method", "scheduler_output_handle")
    if any(assigned.count(name) != 1 for name in names) or assigned.index(names[0]) > assigned.index(names[1]):
        expected = f"one assignment of {names[0]}, and one of {names[1]} after it"
        raise MismatchError(expected, ", ".join(filter(None, assigned)) or "no assignments")
    last, queue = (assigned.index(name) for name in names)
    first = last - (assigned[last - 1] == "port")  # From 0.25.0 on the port has a statement of its own.
    function.body = [*body[:first], *body[last + 1 : queue + 1], *body[first : last + 1], *body[queue + 1 :]]
    return function


patch.rewrite(f"{ray_driver.MODULE}:RayExecutorV2._init_executor", choose_the_port_after_the_queue)


@patch.probe
def queue_takes_the_port_of_the_store() -> Observation:
    """Start an engine over two nodes in one process, without Ray, and open the store where rank 0 is told to."""
    import torch.distributed

    if find_spec(ray_driver.MODULE) is None:
        return Observation(present=False, evidence={"absent": ray_driver.MODULE})
    environment = {"VLLM_PORT": str(free_ports.in_a_row(200)), "VLLM_MQ_MAX_CHUNK_BYTES_MB": "1"}
    with mock.patch.dict(os.environ, environment), free_ports.no_low_ports():
        executor, address = ray_driver.start()
    taken = False
    try:
        next(torch.distributed.rendezvous(f"{address}?rank=0&world_size=1", timeout=timedelta(seconds=20)))
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        taken = True
    same = executor.rpc_broadcast_mq.export_handle().remote_subscribe_addr == address
    return Observation(taken, {"port_of_the_queue": same, "store_opened": not taken})
