"""Tool calls of MiMo in vLLM: how its models write them, and parsers that read them so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from nrl_patches.patches._shared import seed_oss, tool_arguments
from nrl_patches.patches._shared.streaming_xml import TEXT

MIMO = tool_arguments.Form(
    tool_arguments.QWEN3.start,
    "<parameter={name}>{value}</parameter>\n",
    tool_arguments.QWEN3.end,
    tool_arguments.QWEN3.tokens,
)
"""How the chat template writes a call; it says that values are preserved, including newlines and spaces."""

_OF_QWEN3 = ("Qwen3XMLToolParser", "Qwen3EngineToolParser")
"""What the name stands for up to 0.23.0, and up to 0.31.0."""


def keep_newlines_of_mimo(get: Callable[..., Any]) -> Callable[..., Any]:
    """Build a registry that has a parser of its own for MiMo.

    Args:
        get: ``ToolParserManager.get_tool_parser``.
    """

    def get_own(cls: Any, name: str) -> Any:
        found = get(cls, name)
        is_of_qwen3 = found.__name__ in _OF_QWEN3 and found.__module__.startswith("vllm.tool_parsers.")
        return _own(found) if name == "mimo" and is_of_qwen3 else found

    return get_own


@cache
def _own(stock: Any) -> type:
    return _on_engine(stock) if hasattr(stock, "_parser_engine_cls") else _on_xml(stock)


def _on_engine(stock: Any) -> type:
    class MiMoToolParser(stock):  # type: ignore[misc]
        def extract_tool_calls(self, model_output: str, request: Any) -> Any:
            _convert_as_written(self._parser_engine, request)
            return super().extract_tool_calls(model_output, request)

        def extract_tool_calls_streaming(self, *args: Any, **kwargs: Any) -> Any:
            _convert_as_written(self._parser_engine, kwargs["request"] if "request" in kwargs else args[-1])
            return super().extract_tool_calls_streaming(*args, **kwargs)

    return MiMoToolParser


def _convert_as_written(engine: Any, request: Any) -> None:
    """Take values as they stand, unless the model was made to write newlines around them, as Qwen3-Coder does."""
    outputs = getattr(request, "structured_outputs", None)
    is_forced = getattr(outputs, "structural_tag", None) is not None
    engine._arg_converter = engine.parser_engine_config.arg_converter if is_forced else seed_oss.as_written


def _on_xml(stock: Any) -> type:
    class Framing(sys.modules[stock.__module__].StreamingXMLToolCallParser):  # type: ignore[misc]
        """Adds the newlines around text that the parser takes off."""

        _start: str | None = None
        """What there is of a text, as long as that is newlines; else None."""

        def _start_element(self, name: str, attrs: dict[str, str]) -> None:
            super()._start_element(name, attrs)
            is_text = name.startswith("parameter") and self._get_param_type(self.current_param_name) in TEXT
            self._start = "" if is_text else None

        def _char_data(self, data: str) -> None:
            if self._start is None or not self.current_param_name:
                super()._char_data(data)
                return
            self._start += data
            if self._start.strip("\n"):
                data, self._start = f"\n{self._start}", None
                super()._char_data(data)

        def _end_element(self, name: str) -> None:
            if name.startswith("parameter") and self.current_param_name:
                if self._start:
                    super()._char_data(f"\n{self._start}\n")
                elif self.start_quote_emitted and self.should_emit_end_newline:  # It is the text's own.
                    super()._char_data("\n")
                self._start = None
            super()._end_element(name)

    class MiMoToolParser(stock):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.parser = Framing()

    return MiMoToolParser
