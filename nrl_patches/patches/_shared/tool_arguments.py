"""Arguments of tool calls in vLLM: what its real parsers make of them, and how to keep the blanks around text."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from nrl_patches import Observation
from nrl_patches.errors import MismatchError

INDENTED = "  return 1\n"
"""A line of code: an argument that begins and ends with blanks."""

_TYPES = {"text": "string", "count": "integer", "flag": "boolean", "items": "object"}
TOOL = {"name": "edit", "parameters": {"type": "object", "properties": {n: {"type": t} for n, t in _TYPES.items()}}}
"""The tool that is called."""

MODULES = ("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers")
"""Where the parsers are since 0.13.0, and where they were."""


@dataclass(frozen=True)
class Form:
    """How a model writes a call of :data:`TOOL`.

    Attributes:
        start: What comes before the arguments.
        argument: One of them, with the fields ``name`` and ``value``.
        end: What comes after them.
        tokens: What is one token each.
    """

    start: str
    argument: str
    end: str
    tokens: tuple[str, ...]

    def write(self, arguments: Mapping[str, str]) -> str:
        """Return the call.

        Args:
            arguments: The text of each argument.
        """
        written = (self.argument.format(name=name, value=value) for name, value in arguments.items())
        return f"{self.start}{''.join(written)}{self.end}"


QWEN3 = Form(
    "<tool_call>\n<function=edit>\n",
    "<parameter={name}>\n{value}\n</parameter>\n",
    "</function>\n</tool_call>",
    ("<tool_call>", "</tool_call>", "<think>", "</think>"),
)
GLM4 = Form(
    "<tool_call>edit\n",
    "<arg_key>{name}</arg_key>\n<arg_value>{value}</arg_value>\n",
    "</tool_call>",
    ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>"),
)
MINIMAX_M2 = Form(
    '<minimax:tool_call>\n<invoke name="edit">\n',
    '<parameter name="{name}">{value}</parameter>\n',
    "</invoke>\n</minimax:tool_call>",
    ("<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"),
)
MINICPM5 = Form(
    '<function name="edit">',
    '<param name="{name}">{value}</param>',
    "</function>",
    ("<function", "</function>", "<param", "</param>"),
)
# Its tokens have bars of full width.
STEP3 = Form(
    '<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|><steptml:invoke name="edit">'.replace("|", "\uff5c"),
    '<steptml:parameter name="{name}">{value}</steptml:parameter>',
    "</steptml:invoke><|tool_call_end|><|tool_calls_end|>".replace("|", "\uff5c"),
    tuple(f"<\uff5ctool_{name}\uff5c>" for name in ("calls_begin", "calls_end", "call_begin", "call_end", "sep")),
)


def has_module(name: str) -> bool:
    """Whether a release has a module.

    Args:
        name: Its name.
    """
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache
def tokenizer(tokens: tuple[str, ...]) -> Any:
    """Build a tokenizer of transformers in which each byte is a token, and some texts are one each.

    Args:
        tokens: Those texts.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_tokens([AddedToken(text, normalized=False) for text in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=built)


def parser_class(name: str) -> type | None:
    """Return the class of a parser by the name that ``--tool-call-parser`` takes; None if a release has none.

    Args:
        name: The name.
    """
    manager = _first_of(MODULES).ToolParserManager
    try:
        found: type = manager.get_tool_parser(name)
    except KeyError:
        return None
    return found


def complete(parser: type, form: Form, text: str) -> Any:
    """Parse what a model wrote as a whole.

    Args:
        parser: The class of a parser.
        form: How the model writes.
        text: What it wrote.

    Returns:
        The arguments of the first call; None if none was found.
    """
    request = _request()
    calls = _built(parser, form, request).extract_tool_calls(text, request).tool_calls
    return json.loads(calls[0].function.arguments) if calls else None


def streamed(parser: type, form: Form, text: str, step: int = 1) -> Any:
    """Parse what a model wrote as it comes, and put the parts of the first call's arguments together.

    Args:
        parser: The class of a parser.
        form: How the model writes.
        text: What it wrote.
        step: How many tokens come at a time.

    Returns:
        The arguments; what was put together, if that is no JSON.
    """
    request = _request()
    built, tokens = _built(parser, form, request), tokenizer(form.tokens)
    ids, seen, before, arguments = tokens.encode(text), 0, "", ""
    for end in range(step, len(ids) + step, step):
        now = tokens.decode(ids[:end])
        if now.endswith("\ufffd"):  # The rest of a character is still to come.
            continue
        said = built.extract_tool_calls_streaming(
            before, now, now[len(before) :], ids[:seen], ids[:end], ids[seen:end], request
        )
        for call in (said.tool_calls if said else None) or ():
            # Some releases send dictionaries.
            function = call.function if isinstance(call.function, dict) else vars(call.function or request)
            arguments += function.get("arguments") or "" if call.index == 0 else ""
        seen, before = end, now
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return arguments


def observe(name: str, form: Form, text: str = INDENTED) -> Observation:
    """Look whether a parser strips an argument that is text, when it parses a whole and when it parses a stream.

    Args:
        name: The name that ``--tool-call-parser`` takes.
        form: How the model writes.
        text: The argument.

    Returns:
        The defect, with what came out of either.
    """
    parser = parser_class(name)
    if parser is None:
        return Observation(present=False, evidence={"absent": name})
    written = form.write({"text": text, "count": "1"})
    wanted = {"text": text, "count": 1}
    whole, stream = complete(parser, form, written), streamed(parser, form, written)
    return Observation(whole != wanted or stream != wanted, {"whole": repr(whole), "stream": repr(stream)})


def keep_text(function: ast.FunctionDef) -> ast.FunctionDef:
    """Strip only the values that are no text, in a parser of GLM's form.

    Args:
        function: The syntax of ``extract_tool_calls``, which strips every value and reads those that are no text.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It does something else.
    """
    for loop in (node for node in ast.walk(function) if isinstance(node, ast.For)):
        for stripped, reading in zip(loop.body, loop.body[1:], strict=False):
            match stripped, reading:
                case (
                    ast.Assign(value=ast.Call(args=[])),
                    ast.If(
                        body=[ast.Assign(value=ast.Call(args=[ast.Name("arg_val") as argument]) as read)], orelse=[]
                    ),
                ) if ast.unparse(stripped) == "arg_val = value.strip()":
                    read.args = [_parsed(f"{argument.id}.strip()")]
                    stripped.value = _parsed("value")
                    return function
    raise MismatchError("`arg_val = value.strip()`, and its reading where it is no text", "something else")


def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _first_of(names: tuple[str, ...]) -> ModuleType:
    """Import the first module that a release has."""
    return importlib.import_module(next(name for name in names if has_module(name)))


def _request() -> Any:
    protocol = _first_of(("vllm.entrypoints.openai.chat_completion.protocol", "vllm.entrypoints.openai.protocol"))
    return protocol.ChatCompletionRequest(
        model="model", messages=[{"role": "user", "content": "?"}], tools=[{"type": "function", "function": TOOL}]
    )


def _built(parser: Any, form: Form, request: Any) -> Any:
    """Build a parser; until 0.19 it is told of the tools with each call only."""
    try:
        return parser(tokenizer(form.tokens), request.tools)
    except TypeError:
        return parser(tokenizer(form.tokens))
