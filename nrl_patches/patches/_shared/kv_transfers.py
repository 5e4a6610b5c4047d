"""vLLM's scheduler and the transfers of its KV connector: what a patch needs of them, and a scheduler for its probe."""

from __future__ import annotations

import inspect
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

LOAD, SAVE = "load", "save"
BLOCK = 16

_PENDING = "_nrl_patches_pending_kv_transfers"


def await_transfer(request: Any, transfer: str) -> None:
    """Note that the blocks of a finished request are still used by a transfer.

    Args:
        request: The request, which carries the note, so that both go together.
        transfer: ``LOAD`` or ``SAVE``.
    """
    vars(request).setdefault(_PENDING, set()).add(transfer)


def awaits(request: Any, transfer: str) -> bool:
    """Return whether a transfer was noted and is not over.

    Args:
        request: The request.
        transfer: ``LOAD`` or ``SAVE``.
    """
    return transfer in vars(request).get(_PENDING, ())


def settled(scheduler: Any, request_ids: Iterable[str] | None, transfer: str) -> Iterator[str]:
    """Yield the requests, of those whose transfer is over, that the scheduler can go on with.

    It looks at each when the one before has been dealt with, since that may have been the same one.

    Args:
        scheduler: The scheduler.
        request_ids: What the connector reports.
        transfer: What kind of transfer it reports, ``LOAD`` or ``SAVE``.
    """
    for request_id in request_ids or ():
        request = scheduler.requests.get(request_id)
        pending = set() if request is None else vars(request).get(_PENDING, set())
        if request is None or (pending and transfer not in pending):
            logging.getLogger("nrl_patches").warning(
                "A KV connector reports the end of a %s for request %s, which does not await it; it is ignored.",
                transfer,
                request_id,
            )
            continue
        pending.discard(transfer)
        if not pending:
            yield request_id


def scheduler_class() -> Any:
    """Import vLLM's scheduler, also where vLLM is only its source: the CPU is its platform then.

    Returns:
        The class, or None if this release has none that knows of transfers.
    """
    if find_spec("vllm.v1") is None or find_spec("vllm.v1.core.sched") is None:
        return None
    if "diskcache" not in sys.modules and find_spec("diskcache") is None:  # For structured output only.
        sys.modules["diskcache"] = ModuleType("diskcache")
        sys.modules["diskcache"].Cache = object  # type: ignore[attr-defined]
    from vllm import platforms

    if not platforms.current_platform.is_cpu():
        from vllm.platforms.cpu import CpuPlatform

        # There are no kernels beside the source, and 0.17 asks torch for what it no longer has before it looks.
        CpuPlatform.import_kernels = classmethod(lambda _: None)
        platforms._current_platform = platforms.current_platform = CpuPlatform()
    from vllm.model_executor.models import registry
    from vllm.v1.core.sched.scheduler import Scheduler

    registry._run_in_subprocess = lambda inspect_class: inspect_class()
    return Scheduler if hasattr(Scheduler, "_update_from_kv_xfer_finished") else None


def _connector(*, saves: bool) -> type:
    """Return a connector that loads one block for each request in the background, and may save what has finished."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

    methods: dict[str, Any] = dict.fromkeys(KVConnectorBase_V1.__abstractmethods__, lambda *_, **__: None)
    methods["get_num_new_matched_tokens"] = lambda *_: (BLOCK, True)
    methods["build_connector_meta"] = lambda *_: KVConnectorMetadata()
    methods["request_finished"] = lambda *_: (saves, None)
    return type("Connector", (KVConnectorBase_V1,), methods)


def scheduler(*, saves: bool, of: Callable[[type], type] = lambda kind: kind) -> Any:
    """Build vLLM's real scheduler, of 0.16.0 or newer, for a tiny model and a connector that moves nothing.

    Args:
        saves: Whether the connector asks to keep the blocks of a finished request until it has saved them.
        of: Makes the class out of vLLM's.
    """
    kind = of(scheduler_class())
    import torch
    from transformers import LlamaConfig
    from vllm.config import CacheConfig, DeviceConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1 import kv_cache_interface as kv

    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 64, "max_position_embeddings": 128}
    counts = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
    model = LlamaConfig(**sizes, **counts, architectures=["LlamaForCausalLM"], torch_dtype="float32")
    spec = kv.FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    groups = [kv.KVCacheGroupSpec(["layer"], spec)]
    most = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64}
    connector = {"Probe": lambda: _connector(saves=saves)}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(KVConnectorFactory._registry, connector):
        model.save_pretrained(folder)
        config = VllmConfig(
            model_config=ModelConfig(model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=64),
            scheduler_config=SchedulerConfig(**most, is_encoder_decoder=False),
            cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=False),
            device_config=DeviceConfig(device="cpu"),
            kv_transfer_config=KVTransferConfig(kv_connector="Probe", kv_role="kv_both"),
        )
        config.cache_config.num_gpu_blocks = 32
        blocks = kv.KVCacheConfig(num_blocks=32, kv_cache_tensors=[], kv_cache_groups=groups)
        return kind(config, blocks, structured_output_manager=SimpleNamespace(), block_size=BLOCK)


def request(name: str) -> Any:
    """Return a request of two blocks and a half.

    Args:
        name: Its id.
    """
    from vllm import SamplingParams
    from vllm.v1.request import Request

    older = dict.fromkeys({"eos_token_id"} & inspect.signature(Request).parameters.keys())
    return Request(name, list(range(40)), SamplingParams(max_tokens=4), None, **older)


def report(engine: Any, *, load: Iterable[str] = (), save: Iterable[str] = ()) -> None:
    """Take one step in which the workers report transfers that are over, and compute nothing.

    Args:
        engine: The scheduler.
        load: The requests whose load is over.
        save: The requests that are saved.
    """
    from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

    over = KVConnectorOutput(finished_recving=set(load), finished_sending=set(save))
    engine.update_from_output(engine.schedule(), ModelRunnerOutput([], {}, kv_connector_output=over))


def abort_while_loading(engine: Any, *names: str) -> None:
    """Add requests, let their loads begin, and abort them.

    Args:
        engine: The scheduler.
        names: Their ids.
    """
    from vllm.v1.request import RequestStatus

    for name in names:
        engine.add_request(request(name))
    engine.schedule()
    engine.finish_requests(list(names), RequestStatus.FINISHED_ABORTED)


def free_blocks(engine: Any) -> int:
    """Return how many blocks no request has.

    Args:
        engine: The scheduler.
    """
    count = engine.kv_cache_manager.block_pool.get_num_free_blocks()
    return int(count)
