"""Importing vLLM's tool parsers with an openai of either age; a way returns 0 where they do what they should."""

import importlib
import sys
from functools import partial

NAME = "vllm.tool_parsers.utils"


def imported(*, hidden):
    from openai.types import responses

    name = vars(responses).pop("NamespaceTool", None) if hidden else None
    try:
        module = sys.modules.get(NAME)
        module = importlib.reload(module) if module else importlib.import_module(NAME)
    finally:
        if name is not None:
            responses.NamespaceTool = name
    return module


def finds_tools(*, hidden):
    """A function is found among the tools, and a namespace of tools is told from it by the class of this openai."""
    from openai.types import responses

    module = imported(hidden=hidden)
    wrong = (module.NamespaceTool is getattr(responses, "NamespaceTool", None)) == hidden
    tool = responses.FunctionTool(type="function", name="weather", parameters={"type": "object"}, strict=False)
    return wrong or isinstance(tool, module.NamespaceTool)


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "an openai that has the name", partial(finds_tools, hidden=False)
    yield "an openai that has not", partial(finds_tools, hidden=True)
