"""The driver of vLLM's Ray executor without Ray, for the probe of the ports that it chooses."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

MODULE = "vllm.v1.executor.ray_executor_v2"


class _StartedError(Exception):
    """What rank 0 was given to start with; the start ends here."""


def import_executor() -> ModuleType:
    """Import the module of vLLM's Ray executor, without Ray.

    It fails on an annotation then, whose name is lent to it meanwhile.

    Returns:
        The module.
    """
    with mock.patch.object(builtins, "ObjectRef", object, create=True):
        return importlib.import_module(MODULE)


def start() -> tuple[Any, str]:
    """Run the real start of an engine that spans two nodes, up to the start of rank 0.

    Ray is replaced: an actor is an object in this process, on the driver's node or on another one. Its class, the
    queue between the nodes and the configuration are vLLM's own.

    Returns:
        The executor, and the address at which rank 0 has to open its store.

    Raises:
        RuntimeError: No worker was started.
    """
    module = import_executor()
    from vllm.config import ParallelConfig

    parallel = ParallelConfig(tensor_parallel_size=2, distributed_executor_backend="mp")
    parallel.placement_group = object()
    executor = object.__new__(module.RayExecutorV2)
    executor.parallel_config = parallel
    executor.vllm_config = SimpleNamespace(
        parallel_config=parallel, instance_id="probe", weight_transfer_config=None, logging_config=None
    )
    executor.shutdown = lambda: None
    nodes = [(0, "driver", "127.0.0.1"), (1, "other", "127.0.0.1")]
    replaced = {
        "ray": _ray(),
        "initialize_ray_cluster": lambda *_, **__: None,
        "get_bundles_sorted_by_node": lambda _group: nodes,
        "PlacementGroupSchedulingStrategy": lambda **_: None,
    }
    with mock.patch.dict(vars(module), replaced):
        try:
            executor._init_executor()
        except _StartedError as started:
            return executor, started.args[0]
    raise RuntimeError("vLLM started no worker")


def _ray() -> SimpleNamespace:
    def remote(of: type) -> SimpleNamespace:
        def create(**options: Any) -> _Actor:
            return _Actor(of(**options), "driver" if options["is_driver_node"] else "other")

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=create))

    return SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "driver"),
        util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"),
        get=lambda value, **_: value,
        kill=lambda *_, **__: None,
        remote=remote,
    )


class _Actor:
    """A worker in this process; its methods have ``remote``, as Ray's have."""

    def __init__(self, worker: Any, node: str) -> None:
        where = [node, [0]]
        self._worker = worker
        self._own: dict[str, Callable[..., Any]] = {
            "get_node_and_physical_gpu_ids": lambda: where,
            "get_node_and_gpu_ids": lambda: where,  # Up to 0.23.0.
            "initialize_worker": self._start,
        }

    def _start(self, *given: Any, **_: Any) -> None:
        # The address is an argument of the constructor, from 0.29.0 on of this call.
        raise _StartedError(self._worker._init_kwargs.get("distributed_init_method") or given[2])

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=self._own.get(name) or getattr(self._worker, name))
