"""Arguments that Step3 writes lose the blanks around them.

Problem: `Step3ToolParser` (tool_parsers/step3_tool_parser.py) strips every value when it takes it from the text, and
    once more if it is of the type string. The value stands between the tags as it is.
Hit by: the parser `step3`, streaming or not. Code that is edited loses its indentation and last newline, and an
    environment that compares strings gives another reward. No error.
Fix: text, and what has no type, is taken as it stands. What has another type is stripped as before.
Remove when: pull request 49567 is in every supported release; it is open.
"""

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.10.1,<=0.33.0",
    upstream=("https://github.com/vllm-project/vllm/pull/49567",),
    opt_out="NRL_DISABLE_VLLM_STEP3_TOOL_ARGUMENTS_PATCH",
)

for module in tool_arguments.MODULES:
    parser = f"{module}.step3_tool_parser:Step3ToolParser"
    patch.rewrite(
        f"{parser}._parse_steptml_invoke",
        Edit(old="params[name] = value.strip()", new="params[name] = value"),
    )
    patch.rewrite(
        f"{parser}._cast_arguments",
        Edit(
            old='typ = prop.get("type")',
            new="""
                typ = prop.get("type")
                if typ in ("integer", "number", "boolean", "null", "object", "array"):
                    params[key] = value = value.strip()
            """,
        ),
        Edit(old="params[key] = value.strip()", new="params[key] = value"),
    )


@patch.probe
def blanks_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    return tool_arguments.observe("step3", tool_arguments.STEP3)
