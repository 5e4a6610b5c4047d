"""Arguments that Step 3.5 writes lose newlines, and true is false, in a stream.

Problem: in a stream, `StreamingXMLToolCallParser` (tool_parsers/step3p5_tool_parser.py) takes a newline off the start
    of an argument for each token that begins with one, until something else has come; and it converts a boolean or
    number when its first token is there, and never takes back what it has sent: `t` is false. Streamed or not, XML
    makes a newline of a carriage return, and null is written as nothing, which is no JSON.
Hit by: the parser `step3p5`. Code that is edited loses empty lines at its start, or its line ends of Windows, and an
    environment that compares strings gives another reward. No error.
Fix: one newline is taken off, a boolean or number is sent at its end, carriage returns are escaped, and null is null.
    Without streaming, all else is as before.
Remove when: no supported release is older than vLLM 0.32.0.
"""

from nrl_patches import Observation, Patch
from nrl_patches.patches._shared import streaming_xml

patch = Patch(
    __name__,
    affected="vllm>=0.15.1,<0.32.0",
    upstream=("https://github.com/vllm-project/vllm/pull/45413",),
    opt_out="NRL_DISABLE_VLLM_STEP3P5_TOOL_ARGUMENTS_PATCH",
)

streaming_xml.repair(patch, "vllm.tool_parsers.step3p5_tool_parser")


@patch.probe
def arguments_change() -> Observation:
    """Parse a call with a text between newlines and a boolean, by the real parser, whole and token by token."""
    return streaming_xml.observe("step3p5")
