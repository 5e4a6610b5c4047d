"""Import vLLM's engine and its tool parsers, and say what came of it."""

import nrl_patches

try:
    from vllm import LLM  # noqa: F401
    from vllm.tool_parsers import utils  # noqa: F401
except ImportError as error:
    print(error)
else:
    import openai
    from openai.types import responses

    status = nrl_patches.status()["vllm.namespace_tool_import"]
    has = hasattr(responses, "NamespaceTool")
    print(f"{status.state}, openai {openai.__version__}, has NamespaceTool: {has}")
