"""vLLM's own executor, which lives in the process of EngineCore and can be asked about that process."""

from processes.vllm.observed import observe
from vllm.v1.executor.multiproc_executor import MultiprocExecutor


class Executor(MultiprocExecutor):
    def collective_rpc(self, method, *args, **kwargs):
        if method == "observe_core":
            return [observe()]
        return super().collective_rpc(method, *args, **kwargs)
