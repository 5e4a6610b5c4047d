"""What is added to vLLM's workers: refit from files, and a checksum of each weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import applied  # Relative: the package has another name where this runs.

__all__ = ["Worker"]


def _keep_linear_weights_on_the_cpu() -> None:
    """Let the CPU build keep linear weights, which it packs otherwise, and which nobody could write again then."""
    import sys  # noqa: PLC0415 - once

    from torch.nn.functional import linear  # noqa: PLC0415 - see the module docstring
    from vllm.platforms import current_platform  # noqa: PLC0415

    if not current_platform.is_cpu():
        return
    import vllm.model_executor.layers.linear  # noqa: PLC0415
    import vllm.model_executor.layers.vocab_parallel_embedding  # noqa: F401, PLC0415 - both hold the function by name

    def keep(layer: Any, remove_weight: bool) -> None:  # noqa: ARG001, FBT001 - called so
        layer.cpu_linear = linear

    for module in list(sys.modules.values()):
        if "dispatch_cpu_unquantized_gemm" in getattr(module, "__dict__", {}):
            vars(module)["dispatch_cpu_unquantized_gemm"] = keep


_keep_linear_weights_on_the_cpu()


class Worker:
    """For ``worker_extension_cls``; the methods are called by ``collective_rpc``."""

    model_runner: Any

    def diagnose_applied(self) -> list[str]:
        """Return the patches that are applied in the worker's process."""
        found: list[str] = applied()
        return found

    def diagnose_tensors(self) -> dict[str, str]:
        """Return a checksum of every parameter and buffer, by its name."""
        return {name: _checksum(tensor) for name, tensor in _tensors(self.model_runner.get_model())}

    def diagnose_refit(self, folder: str) -> int:
        """Load the weights of a folder, one file after the other, as a trainer's batches come.

        Args:
            folder: Its safetensors files are the batches.

        Returns:
            How many batches there were.
        """
        from safetensors.torch import load_file  # noqa: PLC0415

        files = sorted(Path(folder).glob("*.safetensors"))
        model = self.model_runner.get_model()
        for file in files:
            model.load_weights(iter(load_file(file).items()))
        return len(files)


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    for kind in (model.named_parameters, model.named_buffers):
        for name, tensor in kind():
            if tensor.numel() and not tensor.is_meta:
                yield name, tensor


def _checksum(tensor: Any) -> str:
    import torch  # noqa: PLC0415

    plain = tensor.detach().contiguous().view(-1).view(torch.uint8)
    sizes = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    words = plain.view(next(sizes[n] for n in sizes if not plain.numel() % n and not plain.storage_offset() % n))
    whole, half = (int(part.sum(dtype=torch.int64)) for part in (words, words[: len(words) // 2]))
    # The second sum tells one order of the same values from another, for most.
    return f"{tuple(tensor.shape)} {tensor.dtype} {whole} {half}"
