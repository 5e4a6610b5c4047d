"""Arguments that MiniCPM5 writes lose the blanks around them, or come as half a stream.

Problem: until 0.25 `_parse_function_block` and `_parse_partial_params` (tool_parsers/minicpm5xml_tool_parser.py) strip
    every value. From 0.26 on the first keeps what is proper XML; the second, for calls whose end is still to come, does
    not unless it is CDATA. What was streamed then is no beginning of the whole, and the rest is never sent.
Hit by: the parser `minicpm5`. Until 0.25 code that is edited loses its indentation and last newline; from 0.26 on
    that is so if it has a `<` or `&`, and a stream of other code ends in the middle: arguments that are no JSON.
Fix: both take text as it stands, and other types are read as before.
Remove when: both do so in every supported release; 0.33.0 does not.
"""

import ast

from nrl_patches import Edit, Observation, Patch
from nrl_patches.errors import MismatchError
from nrl_patches.patches._shared import tool_arguments

MODULE = "vllm.tool_parsers.minicpm5xml_tool_parser"

patch = Patch(
    __name__,
    affected="vllm>=0.23.0,<=0.33.0",
    upstream=("https://github.com/vllm-project/vllm/pull/48846",),
    opt_out="NRL_DISABLE_VLLM_MINICPM5_TOOL_ARGUMENTS_PATCH",
)


def strip_no_value(function: ast.FunctionDef) -> ast.FunctionDef:
    """Do without the stripping of values.

    Args:
        function: The syntax of ``_parse_function_block`` or ``_parse_partial_params``.

    Returns:
        The same, changed.

    Raises:
        MismatchError: It strips none.
    """
    stripping = 0
    for node in ast.walk(function):
        match node:
            case ast.Assign(
                targets=[ast.Name("val_text")],
                value=ast.Call(func=ast.Attribute(value=unstripped, attr="strip"), args=[]),
            ):
                node.value = unstripped
                stripping += 1
    if not stripping:
        raise MismatchError("`val_text = ….strip()`", "nothing that strips a value")
    return function


patch.rewrite(f"{MODULE}:_parse_function_block", strip_no_value)
patch.rewrite(f"{MODULE}:_parse_partial_params", strip_no_value)
patch.rewrite(
    f"{MODULE}:_coerce_argument_value",
    Edit(
        old="""
            parsed_val, _ = _parse_arguments(value)
            return parsed_val
        """,
        new="""
            parsed_val, parsed_ok = _parse_arguments(value.strip())
            return parsed_val if parsed_ok else value
        """,
    ),
)
patch.rewrite(
    f"{MODULE}:_add_argument",
    Edit(
        old="parsed_val, parsed_ok = _parse_arguments(val_text)",
        new="parsed_val, parsed_ok = _parse_arguments(val_text.strip())",
    ),
)


@patch.probe
def blanks_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    return tool_arguments.observe("minicpm5", tool_arguments.MINICPM5)
