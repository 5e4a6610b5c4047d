"""Tool calls of Seed-OSS in vLLM: how its model writes them, and how to read them so in either of its parsers."""

from __future__ import annotations

import ast
import json
from typing import Any

from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared.tool_arguments import Form

SEED_OSS = Form(
    "<seed:think></seed:think>\n<seed:tool_call>\n<function=edit>\n",
    "<parameter={name}>{value}</parameter>\n",
    "</function>\n</seed:tool_call>",
    ("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
)
"""How the chat template writes a call. Until 0.24 a stream is not parsed before the end of thinking."""

_WHOLE = """
if match[0] and param_dict[param_name] == param_value:
    param_dict[param_name] = match_text[idx + 1:]
"""
# What cannot be converted goes on being sent as text.
_STREAMED = """
try:
    written = f'{self.parameter_prefix}{self.current_param_name}>{param_value}{self.parameter_end_token}'
    read = self._parse_xml_function_call(f'{self.current_function_name}>{written}', TOOLS).function.arguments
except Exception:
    read = json.dumps({self.current_param_name: param_value})
json_fragment = (', ' if self.param_count else '') + read[1:-1]
"""


def keep_text(function: ast.FunctionDef) -> ast.FunctionDef:
    """Take what was read as text from what the model wrote, if it wrote the end of it.

    Args:
        function: The syntax of ``_parse_xml_function_call``, as it is before vLLM's parser engine.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It does something else.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.For) and ast.unparse(node.body[-1]).startswith("param_dict[param_name] = "):
            node.body += ast.parse(_WHOLE).body
            return function
    raise MismatchError("a loop that ends with `param_dict[param_name] = …`", "none")


def read_streamed_alike(function: ast.FunctionDef) -> ast.FunctionDef:
    """Read an argument of a stream by the function that reads it without.

    Args:
        function: The syntax of ``extract_tool_calls_streaming``, as it is before vLLM's parser engine.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It does something else.
    """
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    tools = [ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) == "self._parse_xml_function_call"]
    change = _Streamed(tools[0] if tools else "")
    change.visit(function)
    if len(tools) != 1 or change.changed != [*change.instead]:
        raise MismatchError(f"one call of _parse_xml_function_call, and {[*change.instead]}", f"{change.changed}")
    return function


class _Streamed(ast.NodeTransformer):
    def __init__(self, tools: str) -> None:
        self.changed: list[str] = []
        self.instead = {
            r"value_text.startswith('\n')": "",
            r"param_value.endswith('\n')": "",
            "self.param_count == 0": _STREAMED.replace("TOOLS", tools),
        }

    def visit_If(self, node: ast.If) -> Any:
        test = ast.unparse(node.test)
        if test not in self.instead:
            return self.generic_visit(node)
        self.changed.append(test)
        return ast.parse(self.instead[test]).body


def as_written(raw_args: str, partial: bool) -> str:  # noqa: FBT001 - as vLLM's parser engine calls it
    """Convert what the model wrote between the tags of a function to JSON, with values as they stand.

    Args:
        raw_args: That text.
        partial: Whether more is to come, so that an open value counts.

    Returns:
        The JSON of an object of texts.
    """
    from vllm.parser import qwen3

    values = dict(match.groups() for match in qwen3._PARAM_RE.finditer(raw_args))
    if partial and (last := qwen3._PARTIAL_PARAM_RE.search(qwen3._PARAM_RE.sub("", raw_args))):
        values[last[1]] = last[2]
    return json.dumps(values, ensure_ascii=False)
