"""What a Ray driver passes to ``ray.init``, so that the workers of its job are patched like the driver itself.

A Ray worker is forked from nothing that the driver imported, so each must bring nrl_patches in by itself. Ray has one
place for that, ``worker_process_setup_hook``: it runs in every worker of a job before the first task or actor does.

This module does not import Ray.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nrl_patches.activation import default_activation
from nrl_patches.errors import SettingsError, explain_problem
from nrl_patches.settings import VARIABLES

__all__ = ["runtime_env"]

# By name rather than as a function: `ray job submit` takes nothing else, and a worker does not have to unpickle it.
_HOOK = "nrl_patches_startup.ray_worker"
_HOOK_FIELD = "worker_process_setup_hook"


def runtime_env(base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the runtime environment of a job whose workers are patched.

    ``ray.init(runtime_env=nrl_patches.ray.runtime_env())`` is all that a driver needs. The variables by which this
    process was told what to apply are passed on to the workers, wherever in the cluster they start.

    Args:
        base: The runtime environment that the job has already; not modified. What it sets stays as it is, its
            environment variables included.

    Raises:
        SettingsError: ``base`` has a setup hook of its own. Ray runs only one.
    """
    merged = dict(base or {})
    if merged.get(_HOOK_FIELD) not in (None, _HOOK):
        raise SettingsError(
            explain_problem(
                _HOOK_FIELD,
                expected="none, because Ray runs only one",
                found=repr(merged[_HOOK_FIELD]),
                next_step="call nrl_patches_startup.ray_worker() at the start of that hook, and add it afterwards: "
                f"runtime_env(…) | {{{_HOOK_FIELD!r}: …}}",
            )
        )
    merged[_HOOK_FIELD] = _HOOK
    merged["env_vars"] = _switches() | dict(merged.get("env_vars") or {})
    return merged


def _switches() -> dict[str, str]:
    # By name: other programs' variables start with NRL_ too, NeMo RL's among them.
    names = (*VARIABLES, *(patch.opt_out for patch in default_activation().registry))
    return {name: os.environ[name] for name in names if name in os.environ}
