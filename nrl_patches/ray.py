"""What a Ray driver passes to ``ray.init``, so that the workers of its job are patched like the driver itself.

A Ray worker does not inherit what the driver has imported, so each must import nrl_patches itself. Ray has one place
for that, the setup hook, which runs in every worker of a job before its first task or actor. ``ray.init``
turns the public field for it, ``worker_process_setup_hook``, into an environment variable, and leaves both to the
workers. A worker that hands its own runtime environment to a ``ray.init`` of its children, as vLLM's Ray executor does,
is rejected for that by Ray before 2.55, and by later releases if the two differ. So we set only the variable.

This module does not import Ray; :func:`runtime_env` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nrl_patches.engine.activation import default_activation
from nrl_patches.engine.settings import VARIABLES
from nrl_patches.errors import Problem, SettingsError
from nrl_patches.hosts.ray import HOOK_OF_THE_JOB

__all__ = ["runtime_env"]

# By name rather than as a function: `ray job submit` takes nothing else, and a worker does not have to unpickle it.
_HOOK = "nrl_patches_hosts.ray.worker"
_FIELD = "worker_process_setup_hook"
_FUNCTION = "ray_runtime_env_func::"
"""How the variable's value begins where ``ray.init`` has sent a function to the cluster."""


def runtime_env(base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the runtime environment of a job whose workers are patched.

    ``ray.init(runtime_env=nrl_patches.ray.runtime_env())`` is all that a driver needs. The variables of this
    process that select patches are passed on to the workers, wherever in the cluster they start. A worker's child
    that calls ``ray.init`` is the driver of another job, whose workers get what that call passes: nothing, the
    environment of the worker that it comes from, or what this function returns.

    Args:
        base: The runtime environment that the job has already; not modified. What it sets is kept, including
            environment variables. Its own setup hook runs after ours.

    Raises:
        SettingsError: The setup hook of ``base`` is a function rather than its dotted name.
    """
    merged = dict(base or {})
    env_vars = dict(merged.get("env_vars") or {})
    variable = _variable()
    set_already = {merged.pop(_FIELD, None), env_vars.pop(variable, None)} - {None, "", _HOOK}
    for theirs in set_already:
        if not isinstance(theirs, str) or theirs.startswith(_FUNCTION):
            raise SettingsError(
                Problem(
                    _FIELD,
                    expected="a dotted name, because Ray runs one hook, and ours has to find it in the worker",
                    found=repr(theirs),
                    next_step="put the function into a module that workers can import, and pass 'module.function'",
                )
            )
        env_vars[HOOK_OF_THE_JOB] = theirs
    if variable is None:
        merged[_FIELD] = _HOOK
    else:
        env_vars[variable] = _HOOK
    merged["env_vars"] = _switches() | env_vars
    carried = list(merged.get("py_modules") or ())
    merged["py_modules"] = carried + [folder for folder in _module_of_hook() if folder not in carried]
    return merged


def _variable() -> str | None:
    # Where Ray is not installed, as on a machine that submits jobs by other means, or no longer has it, the field does.
    try:
        name = import_module("ray._private.ray_constants").WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    except (ImportError, AttributeError):
        return None
    return str(name)


def _module_of_hook() -> list[str]:
    # Ray stops a worker that cannot import its hook. Sent along, the hook starts in an environment without the package
    # too, and says there that the worker is unpatched; under strict mode the worker is stopped with that message.
    spec = find_spec(_HOOK.partition(".")[0])
    return [folder for folder in (spec and spec.submodule_search_locations) or () if Path(folder).is_dir()]


def _switches() -> dict[str, str]:
    # By name: variables of other programs, such as NeMo RL, start with NRL_ too.
    names = (*VARIABLES, *(patch.opt_out for patch in default_activation().registry))
    return {name: os.environ[name] for name in names if name in os.environ}
