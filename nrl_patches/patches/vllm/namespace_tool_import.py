"""vLLM allows openai 2.0 and imports a name that openai has since 2.25.

Problem: vllm/tool_parsers/utils.py imports `NamespaceTool` from `openai.types.responses`, and the releases up to 0.29
    require `openai>=2.0.0`. With openai 2.0 to 2.24 the module raises ImportError, and with it `from vllm import LLM`.
    It is the only name of openai that such a release lacks.
Hit by: environments that hold openai back, as NeMo RL's do: NeMo Gym pins `openai<=2.7.2`.
Fix: where openai has no such class, the name is a class without instances. It is used by `isinstance` only, and no
    client of that age can send such a tool. With openai 2.25 and newer, everything is as it was.
Remove when: every supported vLLM is 0.30.0 or newer, which requires `openai>=2.25.0`.

The target is a module, so that it must not have been imported before nrl_patches; where it was, without an error,
openai is new enough and the patch is `not-affected`. NeMo RL rewrites the file on disk instead
(`_patch_vllm_tool_parser_namespace_tool`); where it did, this patch reports `drifted`, and that can go.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

from packaging.requirements import Requirement

from nrl_patches import Edit, Observation, Patch

patch = Patch(
    __name__,
    affected="vllm>=0.25.0,<0.30.0",
    upstream=(
        "https://github.com/vllm-project/vllm/issues/49103",
        "https://github.com/vllm-project/vllm/pull/49104",
    ),
    opt_out="NRL_DISABLE_VLLM_NAMESPACE_TOOL_IMPORT_PATCH",
)

patch.rewrite(
    "vllm.tool_parsers.utils",
    Edit(old="    NamespaceTool,", new=""),
    Edit(
        old="from openai.types.responses.tool import Tool as ResponsesTool",
        new="""
            from openai.types.responses.tool import Tool as ResponsesTool
            try:
                from openai.types.responses import NamespaceTool
            except ImportError:
                class NamespaceTool:
                    "No tool of this openai."
        """,
    ),
    only_for_import=True,
)


@patch.probe
def tool_parsers_need_a_newer_openai() -> Observation:
    """Import the module while openai has no such name; it is hidden from it where the installed one has it."""
    from openai.types import responses

    hidden = vars(responses).pop("NamespaceTool", None)
    name = "vllm.tool_parsers.utils"
    error = ""
    try:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
        else:
            importlib.import_module(name)
    except ImportError as raised:
        error = str(raised).partition(" (")[0]
    finally:
        if hidden is not None:
            responses.NamespaceTool = hidden
    allowed = _allows("2.24.0")
    return Observation(bool(error) and allowed, {"import_error": error or "none", "openai_2_24_allowed": allowed})


def _allows(openai: str) -> bool:
    """Whether the requirements of vLLM allow a release of openai; any, where it does not say what it requires."""
    try:
        texts = importlib.metadata.requires("vllm") or []
    except importlib.metadata.PackageNotFoundError:
        return True
    return all(r.specifier.contains(openai) for r in map(Requirement, texts) if r.name == "openai")
