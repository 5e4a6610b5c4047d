"""Arguments that GLM-4.5 to GLM-4.7 write lose the blanks around them.

Problem: `Glm4MoeModelToolParser.extract_tool_calls` (tool_parsers/glm4_moe_tool_parser.py) strips every value. The chat
    template writes it between the tags as it is. Streaming calls it until 0.15, and keeps the blanks after that.
Hit by: the parsers `glm45` and `glm47`. Code that is edited loses its indentation and last newline, and an environment
    that compares strings gives another reward. No error.
Fix: text is taken as it stands, and what is read as another type is stripped as before, as in the fixed release.
Remove when: no supported release is older than vLLM 0.21.0.

Not covered: 0.10.0, whose parser reads every argument as text.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.10.1,<0.21.0",
    upstream=("https://github.com/vllm-project/vllm/pull/42026",),
    opt_out="NRL_DISABLE_VLLM_GLM4_TOOL_ARGUMENTS_PATCH",
)

for module in tool_arguments.MODULES:
    patch.rewrite(f"{module}.glm4_moe_tool_parser:Glm4MoeModelToolParser.extract_tool_calls", tool_arguments.keep_text)


@patch.probe
def blanks_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    seen = tool_arguments.observe("glm45", tool_arguments.GLM4)
    if "'count': '1'" in str(seen.evidence.get("whole")):
        return Observation(present=False, evidence={**seen.evidence, "numbers": "are text"})
    return seen
