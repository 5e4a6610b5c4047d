"""Arguments that Qwen3-Coder writes lose newlines by `qwen3_xml`, and true is false, in a stream.

Problem: in a stream, `StreamingXMLToolCallParser` (tool_parsers/qwen3xml_tool_parser.py) takes a newline off the start
    of an argument for each token that begins with one, until something else has come; and it converts a boolean or
    number when its first token is there, and never takes back what it has sent: `t` is false. Streamed or not, XML
    makes a newline of a carriage return, and null is written as nothing, which is no JSON.
Hit by: the parser `qwen3_xml`, and `mimo`, which is the same. Code that is edited loses empty lines at its start, or
    its line ends of Windows, and an environment that compares strings gives another reward. No error.
Fix: one newline is taken off, a boolean or number is sent at its end, carriage returns are escaped, and null is null.
    Without streaming, all else is as before, except that a call without `</parameter>` gets no second brace at its end.
Remove when: no supported release is older than vLLM 0.24.0.

`vllm.qwen3_tool_arguments` is for the parser that newer releases have.
"""

from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import streaming_xml, tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.11.0,<0.24.0",
    upstream=("https://github.com/vllm-project/vllm/pull/45413",),
    opt_out="NRL_DISABLE_VLLM_QWEN3_XML_TOOL_ARGUMENTS_PATCH",
)

for module in tool_arguments.MODULES:
    streaming_xml.repair(patch, f"{module}.qwen3xml_tool_parser")


def end_functions_once(end: Callable[..., None]) -> Callable[..., None]:
    """Build a handler that forgets a function which has ended, as the copy for Step 3.5 does.

    Args:
        end: ``_end_element``. If `</parameter>` is missing it is called for both of the next end tags in a chunk, and
            closes the JSON twice, unless a number or boolean came in pieces: which it does no more.
    """

    def end_once(self: Any, name: str) -> None:
        end(self, name)
        if name.startswith("function"):
            self.current_function_name = None

    return end_once


for module in tool_arguments.MODULES:
    patch.fix(
        f"{module}.qwen3xml_tool_parser:StreamingXMLToolCallParser._end_element",
        guard=lambda end: mismatch(end, parameters="self name", attributes="current_function_open"),
    )(end_functions_once)


@patch.probe
def arguments_change() -> Observation:
    """Parse a call with a text between newlines and a boolean, by the real parser, whole and token by token."""
    if not any(tool_arguments.has_module(f"{module}.qwen3xml_tool_parser") for module in tool_arguments.MODULES):
        return Observation(present=False, evidence={"absent": "qwen3xml_tool_parser"})
    return streaming_xml.observe("qwen3_xml")
