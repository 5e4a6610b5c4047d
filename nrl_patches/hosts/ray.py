"""Ray: the setup hook of a job's workers, put there by ``nrl_patches.ray.runtime_env``."""

from . import door

__all__ = ["HOOK_OF_THE_JOB", "worker"]

HOOK_OF_THE_JOB = "_NRL_PATCHES_RAY_HOOK"
"""The variable that names a setup hook of the user's own: Ray runs one, and nrl_patches.ray has put ours there."""


def worker() -> None:
    """Bring nrl_patches into a Ray worker; then call the setup hook that the job has of its own.

    Raises:
        Exception: What the job's own hook raises. Under strict mode whatever else is wrong.
    """
    import os  # noqa: PLC0415 - see the package's docstring
    from importlib import import_module  # noqa: PLC0415

    door.bring("ray")
    module, _, function = os.environ.get(HOOK_OF_THE_JOB, "").rpartition(".")
    if module:
        getattr(import_module(module), function)()
