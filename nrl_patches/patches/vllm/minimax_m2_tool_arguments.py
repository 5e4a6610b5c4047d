"""Arguments that MiniMax M2 writes lose the blanks around them.

Problem: `_minimax_m2_arg_converter` (vllm/parser/minimax_m2.py) strips every value. The chat template writes it between
    the tags as it is.
Hit by: the parser `minimax_m2`, streaming or not. Code that is edited loses its indentation and last newline, and an
    environment that compares strings gives another reward. No error.
Fix: the value is taken as it stands, as in the fixed release. Other types are read as before.
Remove when: no supported release is older than vLLM 0.26.0.

`vllm.minimax_m2_tool_arguments_before_engine` is for the parser that older releases have.
"""

import ast

from nrl_patches import Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.24.0,<0.26.0",
    upstream=("https://github.com/vllm-project/vllm/pull/48846",),
    opt_out="NRL_DISABLE_VLLM_MINIMAX_M2_TOOL_ARGUMENTS_PATCH",
)


def take_values_as_they_stand(function: ast.FunctionDef) -> ast.FunctionDef:
    """Do without the stripping of values: one in 0.24, and from 0.25 on another one of what is still streamed.

    Args:
        function: The syntax of ``_minimax_m2_arg_converter``.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It strips no value.
    """
    stripping = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and ast.unparse(node) == "params[name] = match.group('value').strip()"
    ]
    if not stripping:
        raise MismatchError("`params[name] = match.group('value').strip()`", "nothing that strips a value")
    for node in stripping:
        node.value = ast.parse("match.group('value')", mode="eval").body
    return function


patch.rewrite("vllm.parser.minimax_m2:_minimax_m2_arg_converter", take_values_as_they_stand)


@patch.probe
def blanks_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    if not tool_arguments.has_module("vllm.parser.minimax_m2"):
        return Observation(present=False, evidence={"absent": "vllm.parser.minimax_m2"})
    from vllm.parser import minimax_m2

    # What it made before holds the converter that there was then.
    minimax_m2.minimax_m2_config.cache_clear()
    return tool_arguments.observe("minimax_m2", tool_arguments.MINIMAX_M2)
