"""Arguments that Qwen3-Coder and Nemotron 3 write lose the blanks around them.

Problem: `_qwen3_arg_converter` (vllm/parser/qwen3.py) strips every value. The chat template puts a newline on either
    side of it, and releases before 0.24 took off these alone.
Hit by: the parsers `qwen3_coder` and `qwen3_xml`, with which Nemotron 3 is served too, and `seed_oss` of 0.25;
    streaming or not. Code that is edited loses its indentation and last newline, and an environment that compares
    strings gives another reward. No error.
Fix: one newline at most is taken off at either side, as in the fixed release. Other types are read as before.
Remove when: no supported release is older than vLLM 0.26.0.
"""

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.24.0,<0.26.0",
    upstream=(
        "https://github.com/vllm-project/vllm/issues/48753",
        "https://github.com/vllm-project/vllm/pull/48846",
    ),
    opt_out="NRL_DISABLE_VLLM_QWEN3_TOOL_ARGUMENTS_PATCH",
)

# The second is in a deeper block, which is still streamed: its lines tell them apart.
patch.rewrite(
    "vllm.parser.qwen3:_qwen3_arg_converter",
    Edit(
        old="""
            value = match.group(2)
            params[name] = value.strip()
        """,
        new="""
            value = match.group(2)
            params[name] = value.removeprefix("\\n").removesuffix("\\n")
        """,
    ),
    Edit(
        old="""
            if name:
                params[name] = value.strip()
        """,
        new="""
            if name:
                params[name] = value.removeprefix("\\n").removesuffix("\\n")
        """,
    ),
)


@patch.probe
def blanks_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    if tool_arguments.has_module("vllm.parser.qwen3"):
        from vllm.parser import qwen3

        # What it made before holds the converter that there was then.
        qwen3.qwen3_config.cache_clear()
    return tool_arguments.observe("qwen3_coder", tool_arguments.QWEN3)
