"""Arguments that Poolside's models write lose the blanks around them, unless they are streamed.

Problem: `PoolsideV1ToolParser.extract_tool_calls` (tool_parsers/poolside_v1_tool_parser.py) strips every value; its
    streaming keeps them as they are.
Hit by: the parser `poolside_v1` without streaming. Code that is edited loses its indentation and last newline, and an
    environment that compares strings gives another reward. No error.
Fix: text is taken as it stands, and what is read as another type is stripped as before, as in the fixed release.
Remove when: no supported release is older than vLLM 0.25.0.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.21.0,<0.25.0",
    upstream=("https://github.com/vllm-project/vllm/pull/42026",),
    opt_out="NRL_DISABLE_VLLM_POOLSIDE_TOOL_ARGUMENTS_PATCH",
)

patch.rewrite(
    "vllm.tool_parsers.poolside_v1_tool_parser:PoolsideV1ToolParser.extract_tool_calls", tool_arguments.keep_text
)


@patch.probe
def blanks_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    return tool_arguments.observe("poolside_v1", tool_arguments.GLM4)
