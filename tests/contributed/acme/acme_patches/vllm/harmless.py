"""A stand-in for a patch of vLLM: it changes nothing, and its status tells which processes it has reached.

Problem: none.
Hit by: the tests of nrl-patches.
Fix: the function that makes loggers is called by another one.
Remove when: these tests have something better.
"""

from nrl_patches import Patch, mismatch

patch = Patch(
    __name__,
    affected="vllm>=0.6.3,<=0.33.0",
    upstream=("https://example.org/issues/2",),
    opt_out="ACME_PATCHES_DISABLE_HARMLESS",
)


@patch.fix("vllm.logger:init_logger", guard=lambda init: mismatch(init, parameters="name"))
def call_it(init_logger):
    """Build a function that calls the original."""

    def init_logger_as_before(name):
        return init_logger(name)

    return init_logger_as_before


@patch.probe
def is_unpatched():
    """Look for the mark of a replacement."""
    from vllm.logger import init_logger

    return not hasattr(init_logger, "__nrl_patches__")
