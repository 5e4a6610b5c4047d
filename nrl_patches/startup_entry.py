"""The entry points by which hosts bring nrl_patches into their processes, shipped as ``nrl_patches_startup``.

A top-level module of its own: importing any part of nrl_patches activates it, and hosts treat the two moments
differently. vLLM logs and forgets what *loading* a plugin raises, but lets through what *calling* it raises; so the
load does nothing that can fail, and everything happens in the call. It is also loaded at the start of interpreters
that never need it, so it imports nothing before it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["HOOK_OF_THE_JOB", "keep_failure", "ray_worker", "startup", "vllm_plugin"]

HOOK_OF_THE_JOB = "_NRL_PATCHES_RAY_HOOK"
"""The variable that names a setup hook of the user's own: Ray runs one, and nrl_patches.ray has put ours there."""

failure = ""
"""The traceback of the import of nrl_patches, where that failed here; empty otherwise."""


def vllm_plugin() -> None:
    """Bring nrl_patches into a process of vLLM: entry point group ``vllm.general_plugins``.

    Raises:
        Exception: Under strict mode only, whatever is wrong.
    """
    _bring("plugin")


def ray_worker() -> None:
    """Bring nrl_patches into a Ray worker, as its setup hook; then call the one that the job has of its own.

    Raises:
        Exception: What the job's own hook raises. Under strict mode whatever else is wrong.
    """
    import os  # noqa: PLC0415 - see the module docstring
    from importlib import import_module  # noqa: PLC0415

    _bring("ray")
    module, _, function = os.environ.get(HOOK_OF_THE_JOB, "").rpartition(".")
    if module:
        getattr(import_module(module), function)()


def startup(_module: ModuleType) -> None:
    """Bring nrl_patches into a process that has just imported a package with a target: autowrapt's startup files.

    Args:
        _module: The package.

    Raises:
        Exception: Under strict mode only, whatever is wrong; the package's import fails then.
    """
    _bring("startup")


def _bring(path: str) -> None:
    import os  # noqa: PLC0415 - see the module docstring
    import sys  # noqa: PLC0415
    from types import ModuleType  # noqa: PLC0415

    # Read here already: off means that even a broken installation of ours does nothing.
    if os.environ.get("NRL_PATCHES", "").strip().lower() in {"0", "false", "no", "off"}:
        return
    # The first path counts. The note is kept where two copies of nrl_patches meet, because this module is none of it.
    shared = sys.modules.setdefault("_nrl_patches_process", ModuleType("_nrl_patches_process"))
    vars(shared).setdefault("path", path)
    try:
        import nrl_patches  # noqa: F401, PLC0415
    except Exception as error:
        _report(path, error)
        if _is_strict():
            _refuse(error)
            raise


def _refuse(error: Exception) -> None:
    # Once it has called them, wrapt forgets its hooks, and vLLM its plugins: whoever catches the error and imports
    # again would go on unpatched.
    import sys  # noqa: PLC0415
    from contextlib import suppress  # noqa: PLC0415
    from importlib.metadata import distributions  # noqa: PLC0415

    packages = set()
    for distribution in distributions():
        with suppress(Exception):  # Of whatever else is installed, the metadata may be broken.
            packages |= {entry.name for entry in distribution.entry_points if entry.group == "nrl_patches.startup"}

    class Refusal:
        @staticmethod
        def find_spec(name: str, _path: object = None, _target: object = None) -> None:
            if name.partition(".")[0] in packages:
                raise error

    sys.meta_path.insert(0, Refusal)


def _is_strict() -> bool:
    # nrl_patches.settings reads it everywhere else, but may be the very thing that cannot be imported.
    import os  # noqa: PLC0415

    return os.environ.get("NRL_PATCHES_STRICT", "").strip().lower() in {"1", "true", "yes", "on"}


def _report(path: str, error: Exception) -> None:
    import logging  # noqa: PLC0415
    import sys  # noqa: PLC0415

    if failure:
        return
    keep_failure(path, error)
    said = str(error)
    if "; next step: " not in said:  # Errors of ours have a better one.
        said = (
            f"nrl_patches ({path}): expected to be imported; found {type(error).__name__}: {said}; "
            "next step: reinstall nrl-patches in this environment"
        )
    consequence = "" if _is_strict() else "; this process runs without any patch"
    logger = logging.getLogger("nrl_patches")
    logger.error("%s%s", said, consequence)
    # As nrl_patches.telling does, which may be the very thing that cannot be imported.
    if not logger.isEnabledFor(logging.ERROR) and sys.stderr is not None:
        print(f"nrl_patches: {said}{consequence}", file=sys.stderr, flush=True)  # noqa: T201


def keep_failure(path: str, error: Exception) -> None:
    """Keep the failed import of nrl_patches where this process can be asked about it. Acts once.

    Args:
        path: The word for what imported it, see the README.
        error: What the import raised.
    """
    import json  # noqa: PLC0415
    import os  # noqa: PLC0415
    import traceback  # noqa: PLC0415
    from contextlib import suppress  # noqa: PLC0415

    global failure  # noqa: PLW0603 - for the process itself; others read the record, see record.py
    if failure:
        return
    failure = "".join(traceback.format_exception(error))
    record = {"change": 1, "pid": os.getpid(), "activated_by": path, "failure": failure, "statuses": [], "complete": 1}
    with suppress(OSError, AttributeError, ImportError):  # Where there are no files in memory, the log has to do.
        from fcntl import F_DUPFD_CLOEXEC, fcntl  # noqa: PLC0415

        made = os.memfd_create("nrl_patches-1", os.MFD_CLOEXEC)
        try:  # 0 to 2 are for others, even where they are closed now.
            os.write(fcntl(made, F_DUPFD_CLOEXEC, 3), json.dumps(record).encode())
        finally:
            os.close(made)
