"""Ray: the setup hook of a job's workers, put there by ``nrl_patches.ray.runtime_env``."""

from . import door

__all__ = ["HOOK_OF_THE_JOB", "worker"]

HOOK_OF_THE_JOB = "_NRL_PATCHES_RAY_HOOK"
"""The variable that names the user's own setup hook: Ray runs a single one, which nrl_patches.ray has set to ours."""


def worker() -> None:
    """Bring nrl_patches into a Ray worker; then call the job's own setup hook.

    Raises:
        Exception: Whatever the job's own hook raises; under strict mode also that nrl_patches cannot be imported.
    """
    import os  # noqa: PLC0415 - see the package's docstring
    from importlib import import_module  # noqa: PLC0415

    door.load("ray")
    module, _, function = os.environ.get(HOOK_OF_THE_JOB, "").rpartition(".")
    if module:
        getattr(import_module(module), function)()
