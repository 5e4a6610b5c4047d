"""Arguments that Seed-OSS writes lose a newline at either side.

Problem: both of its parsers take off a newline before and after a value, as for Qwen3-Coder: until 0.24
    `SeedOssToolParser` (tool_parsers/seed_oss_tool_parser.py), from 0.25 on `SeedOssParser` (parser/seed_oss.py), in
    0.25 with all other blanks. The chat template writes the value between the tags as it is. Until 0.24 streaming
    makes a text of every other type too.
Hit by: the parser `seed_oss`, streaming or not. Code that is edited loses its last newline, and an environment that
    compares strings gives another reward. No error.
Fix: text is taken as it stands, as upstream does for MiMo on the same engine. Other types are read as before, in a
    stream as without.
Remove when: `SeedOssParser` keeps newlines in every supported release; 0.33.0 does not.

A model that puts newlines around values, because a prompt of its own asks for them, keeps these in its arguments. So
does, from 0.25 on, a value whose closing tag is missing with the newline before the next tag, as for MiMo.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from nrl_patches import Observation, Patch, mismatch
from nrl_patches.patches._shared import seed_oss, tool_arguments

patch = Patch(
    __name__,
    affected="vllm>=0.10.2,<=0.33.0",
    upstream=(
        "https://github.com/vllm-project/vllm/pull/46314",
        "https://github.com/vllm-project/vllm/pull/58019",  # for MiMo
    ),
    opt_out="NRL_DISABLE_VLLM_SEED_OSS_TOOL_ARGUMENTS_PATCH",
    relies_on=(
        "vllm.parser.seed_oss:SeedOssParser",
        "vllm.parser.qwen3:Qwen3Parser.__init__",
    ),
)

for module in tool_arguments.MODULES:
    parser = f"{module}.seed_oss_tool_parser:SeedOssToolParser"
    patch.rewrite(f"{parser}._parse_xml_function_call", seed_oss.keep_text)
    patch.rewrite(f"{parser}.extract_tool_calls_streaming", seed_oss.read_streamed_alike)


@patch.fix(
    "vllm.parser.seed_oss:SeedOssParser.__init__",
    guard=lambda init: mismatch(init, parameters="self tokenizer tools kwargs", attributes="CONFIG_NAME"),
)
def convert_as_written(init: Callable[..., Any]) -> Callable[..., Any]:
    """Build a constructor whose parser takes values as they stand, unless it is given a configuration.

    Args:
        init: The constructor of vLLM's ``SeedOssParser``, which inherits it.
    """

    def init_as_written(self: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.parser import qwen3

        init(self, *args, **kwargs)
        if "parser_engine_config" in kwargs:
            return
        self._arg_converter = seed_oss.as_written
        if hasattr(qwen3, "_param_value_extender"):  # From 0.33 on.
            self._arg_value_extender = partial(qwen3._param_value_extender, trim_newlines=False)

    return init_as_written


@patch.probe
def newlines_are_lost() -> Observation:
    """Parse a call whose argument is an indented line, by the real parser, whole and in a stream."""
    return tool_arguments.observe("seed_oss", seed_oss.SEED_OSS)
