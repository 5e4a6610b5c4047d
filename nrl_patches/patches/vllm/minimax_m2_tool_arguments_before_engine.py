"""Arguments that MiniMax M2 writes lose the blanks around them, in releases before vLLM's parser engine.

Problem: `MinimaxM2ToolParser` (tool_parsers/minimax_m2_tool_parser.py) strips every value. The chat template writes it
    between the tags as it is. Until 0.17 streaming takes off one newline at either side instead.
Hit by: the parser `minimax_m2`. Code that is edited loses its indentation and last newline, and an environment that
    compares strings gives another reward. No error.
Fix: text is taken as it stands, as in 0.26. What is read as another type is stripped as before, and so is a value whose
    end is missing.
Remove when: no supported release is older than vLLM 0.24.0.

`vllm.minimax_m2_tool_arguments` is for the parser that newer releases have.
"""

import ast
from collections.abc import Iterator

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.11.1,<0.24.0",
    upstream=("https://github.com/vllm-project/vllm/pull/48846",),
    opt_out="NRL_DISABLE_VLLM_MINIMAX_M2_TOOL_ARGUMENTS_PATCH",
)

_WHOLE = """
if param_dict[param_name] == param_value:
    param_dict[param_name] = param_match.group(2)
"""
_STREAMED = """
if converted_value == param_value and value_text.startswith(self.parameter_end_token, param_end_idx):
    converted_value = tool_text[value_start:len(tool_text) - len(value_text) + param_end_idx]
"""


def _with_after(function: ast.FunctionDef, target: str, addition: str) -> ast.FunctionDef:
    """Add statements after the one that assigns what a value was read as."""
    blocks = [(block, at) for block in _blocks(function) for at, one in enumerate(block) if _assigns(one, target)]
    if len(blocks) != 1:
        raise MismatchError(f"one assignment of {target}", f"{len(blocks)} of them")
    ((block, at),) = blocks
    block[at + 1 : at + 1] = ast.parse(addition).body
    return function


def _blocks(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def _assigns(statement: ast.stmt, target: str) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == target


def keep_text(function: ast.FunctionDef) -> ast.FunctionDef:
    """Take what was read as text from what the model wrote.

    Args:
        function: The syntax of ``_parse_single_invoke``.

    Returns:
        The same, changed.
    """
    return _with_after(function, "param_dict[param_name]", _WHOLE)


def keep_streamed_text(function: ast.FunctionDef) -> ast.FunctionDef:
    """Do the same where a stream is read by code of its own, which is so until 0.17.

    Args:
        function: The syntax of ``extract_tool_calls_streaming``.

    Returns:
        The same, changed if it needs to be.
    """
    if "self._extract_delta_tool_calls(" in ast.unparse(function):
        return function
    return _with_after(function, "converted_value", _STREAMED)


for module in tool_arguments.MODULES:
    parser = f"{module}.minimax_m2_tool_parser:MinimaxM2ToolParser"
    patch.rewrite(f"{parser}._parse_single_invoke", keep_text)
    patch.rewrite(f"{parser}.extract_tool_calls_streaming", keep_streamed_text)


@patch.probe
def blanks_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    if tool_arguments.has_module("vllm.parser.minimax_m2"):
        return Observation(present=False, evidence={"newer": "vllm.parser.minimax_m2"})
    return tool_arguments.observe("minimax_m2", tool_arguments.MINIMAX_M2)
