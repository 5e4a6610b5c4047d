"""vLLM: entry point group ``vllm.general_plugins``, called in each process of an engine."""

from . import door

__all__ = ["plugin"]


def plugin() -> None:
    """Bring nrl_patches into a process of vLLM.

    Raises:
        Exception: Under strict mode only, whatever is wrong.
    """
    door.load("plugin")
