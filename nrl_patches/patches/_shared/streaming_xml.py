"""vLLM's ``StreamingXMLToolCallParser``, of which two of its parsers have a copy, and how a stream reads as a whole."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import tool_arguments

TEXT = ("string", "str", "text", "varchar", "char", "enum")
"""What the parser takes for types of text."""

_AS_IT_COMES = (*TEXT, "object")
"""The types of which the parser sends what it has, in a stream."""

_WRITTEN = {"text": "\n\n  return 1\r\n", "flag": "true", "count": "1"}
_READ = {"text": _WRITTEN["text"], "flag": True, "count": 1}


def repair(patch: Patch, module: str) -> None:
    """Declare the fixes of one copy.

    Args:
        patch: The patch.
        module: The module that has the copy.
    """
    parser = f"{module}:StreamingXMLToolCallParser"
    patch.rewrite(f"{parser}._char_data", drop_one_newline)
    patch.fix(f"{parser}.parse_single_streaming_chunks", guard=_buffers_chunks)(note_the_first)
    patch.fix(f"{parser}._find_next_complete_element", guard=_finds_elements)(wait_for_values)
    patch.fix(f"{parser}._escape_xml_special_chars", guard=lambda escape: mismatch(escape, parameters="text"))(
        escape_carriage_returns
    )
    patch.fix(f"{parser}._convert_for_json_streaming", guard=_writes_values)(write_null)


def drop_one_newline(function: ast.FunctionDef) -> ast.FunctionDef:
    """Take a newline off the start of an argument only if nothing of it has come before.

    Args:
        function: The syntax of ``_char_data``.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It does something else.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith("not self.current_param_value and data."):
            # The opening quote is sent with the first piece, even if that is the newline alone.
            node.test = ast.parse(f"not self.start_quote_emitted and {ast.unparse(node.test)}", mode="eval").body
            return function
    raise MismatchError("`if not self.current_param_value and data.startswith(…)`", "none")


def _buffers_chunks(parse: Callable[..., Any]) -> str | None:
    return mismatch(parse, parameters="self xml_chunk", attributes="streaming_buffer")


def note_the_first(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Build a parser of chunks that knows its first one, which is all there is of what is not streamed.

    Args:
        parse: ``parse_single_streaming_chunks``.
    """

    def parse_noting(self: Any, xml_chunk: str) -> Any:
        self.more_may_come = bool(self.streaming_buffer)
        return parse(self, xml_chunk)

    return parse_noting


def _finds_elements(find: Callable[..., Any]) -> str | None:
    return mismatch(find, parameters="self start_pos", attributes="streaming_buffer current_call_id")


def wait_for_values(find: Callable[..., Any]) -> Callable[..., Any]:
    """Build a search that does not take the beginning of a number or boolean, or of null, for the whole.

    Args:
        find: ``_find_next_complete_element``, which returns the text up to the next tag, or as much as there is.
    """

    def find_values(self: Any, start_pos: int) -> tuple[str | None, int]:
        found: tuple[str | None, int] = find(self, start_pos)
        text, end = found
        is_open = getattr(self, "more_may_come", True) and end == len(self.streaming_buffer)
        if not is_open or not text or "<" in text or not self.current_param_name:
            return found
        of_type = self._get_param_type(self.current_param_name)
        if of_type in TEXT and not self.start_quote_emitted:
            ambiguous = "null".startswith(text.removeprefix("\n").lower())
        else:
            ambiguous = of_type not in _AS_IT_COMES
        return (None, start_pos) if ambiguous else found

    return find_values


def escape_carriage_returns(escape: Callable[..., str]) -> Callable[..., str]:
    """Build a function that escapes carriage returns too, which XML would make newlines.

    Args:
        escape: ``_escape_xml_special_chars``.
    """

    def escape_all(self: Any, text: str) -> str:
        return escape(self, text).replace("\r", "&#13;")

    return escape_all


def _writes_values(convert: Callable[..., Any]) -> str | None:
    return mismatch(convert, parameters="self converted_value param_type")


def write_null(convert: Callable[..., str]) -> Callable[..., str]:
    """Build a writer of JSON that knows null, which is nothing in a text only.

    Args:
        convert: ``_convert_for_json_streaming``.
    """

    def convert_null(self: Any, converted_value: Any, param_type: str) -> str:
        if converted_value is None and param_type not in TEXT:
            return "null"
        return convert(self, converted_value, param_type)

    return convert_null


def observe(name: str) -> Observation:
    """Look whether a parser reads a text between newlines, and a boolean, as written, whole and token by token.

    Args:
        name: The name that ``--tool-call-parser`` takes.

    Returns:
        The defect, with what came out of either.
    """
    parser = tool_arguments.parser_class(name)
    if parser is None:
        return Observation(present=False, evidence={"absent": name})
    written = tool_arguments.QWEN3.write(_WRITTEN)
    whole = tool_arguments.complete(parser, tool_arguments.QWEN3, written)
    stream = tool_arguments.streamed(parser, tool_arguments.QWEN3, written)
    return Observation(whole != _READ or stream != _READ, {"whole": repr(whole), "stream": repr(stream)})
