"""Arguments that MiMo writes lose a newline at either side, or all blanks around them.

Problem: the name `mimo` stands for the parser of Qwen3-Coder, which takes off a newline before and after a value, in
    0.24 and 0.25 all blanks. MiMo's chat template writes the value between the tags as it is, and tells the model that
    it is preserved so.
Hit by: the parser `mimo`, streaming or not. Code that is edited loses its last newline, and an environment that
    compares strings gives another reward. No error.
Fix: the name stands for a subclass that takes text as it stands, as in the fixed release. Other types are read as
    before, and so is a call that vLLM forces into Qwen3-Coder's form: one of `strict` tools or a required one, from
    0.24 on.
Remove when: no supported release is older than vLLM 0.32.0.

As in the fixed release, a value whose closing tag is missing keeps the newline before the next tag.
"""

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import mimo, tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.20.0,<0.32.0",
    upstream=("https://github.com/vllm-project/vllm/pull/58019",),
    opt_out="NRL_DISABLE_VLLM_MIMO_TOOL_ARGUMENTS_PATCH",
)

patch.fix(
    "vllm.tool_parsers.abstract_tool_parser:ToolParserManager.get_tool_parser",
    guard=lambda get: mismatch(get, parameters="name", attributes="tool_parsers lazy_parsers"),
)(mimo.keep_newlines_of_mimo)


@patch.probe
def newlines_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    return tool_arguments.observe("mimo", mimo.MIMO)
