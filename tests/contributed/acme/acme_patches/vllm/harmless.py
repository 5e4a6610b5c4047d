"""A stand-in for a patch of vLLM: it changes nothing, and its status tells which processes it has reached.

Problem: none.
Hit by: the tests of nrl-patches.
Fix: the function that makes loggers is rewritten as it is.
Remove when: these tests have something better.
"""

from nrl_patches import Patch

patch = Patch(
    __name__,
    affected="vllm>=0.6.3,<=0.33.0",
    upstream=("https://example.org/issues/2",),
    opt_out="ACME_PATCHES_DISABLE_HARMLESS",
)


patch.rewrite("vllm.logger:init_logger", lambda function: function)


@patch.probe
def is_unpatched():
    """Look for the mark of a replacement."""
    from vllm.logger import init_logger

    return not hasattr(init_logger, "__nrl_patches__")
