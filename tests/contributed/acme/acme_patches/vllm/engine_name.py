"""An engine of vLLM does not say that Acme started it: no defect, but visible from outside the engine's process.

Problem: `vllm.version.__version_tuple__` cannot be told from that of anybody else's engine.
Hit by: the tests of nrl-patches.
Fix: the logger's name for an engine gets Acme's in front.
Remove when: those tests find something better.
"""

from nrl_patches import Observation, Patch, mismatch

patch = Patch(
    __name__,
    affected="vllm>=0.6.3,<=0.33.0",
    upstream=("https://example.org/issues/2",),
    opt_out="ACME_PATCHES_DISABLE_ENGINE_NAME",
)


@patch.fix("vllm.logger:init_logger", guard=lambda init: mismatch(init, parameters="name"))
def name_acme(init_logger):
    """Build a logger whose name begins with Acme's."""

    def init_logger_of_acme(name):
        return init_logger(name)

    return init_logger_of_acme


@patch.probe
def engine_has_no_name():
    """Look at the function."""
    from vllm.logger import init_logger

    return Observation(init_logger.__name__ == "init_logger" and not hasattr(init_logger, "__nrl_patches__"))
