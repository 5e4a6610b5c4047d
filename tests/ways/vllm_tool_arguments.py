"""Tool calls in the form of each model, through vLLM's parsers; a way returns how many arguments are not as written."""

import contextlib
import json
from functools import partial

from nrl_patches.patches._shared import mimo, seed_oss, tool_arguments
from nrl_patches.patches._shared.tool_arguments import complete, streamed

FORMS = {
    "qwen3_coder": tool_arguments.QWEN3,
    "qwen3_xml": tool_arguments.QWEN3,
    "minimax_m2": tool_arguments.MINIMAX_M2,
    "glm45": tool_arguments.GLM4,
    "glm47": tool_arguments.GLM4,
    "poolside_v1": tool_arguments.GLM4,
    "step3": tool_arguments.STEP3,
    "minicpm5": tool_arguments.MINICPM5,
    "seed_oss": seed_oss.SEED_OSS,
    "mimo": mimo.MIMO,
    "step3p5": tool_arguments.QWEN3,
}
TEXTS = (tool_arguments.INDENTED, "\n\n  a\n\n", " ", "\n", "", "\t\u00a0x\u3000", " 5 ", "true\n", ' "é" \\ ')
OTHERS = {"count": "5", "flag": "true", "items": '{"x": [1]}'}


def subclass(parser):
    return type(f"My{parser.__name__}", (parser,), {"__module__": parser.__module__})


def itself(parser):
    return parser


def lost(name, parse, change=itself):
    """Arguments that are text, alone and before others."""
    form, parser = FORMS[name], change(tool_arguments.parser_class(name))
    wrong = 0
    for text in TEXTS:
        wrong += parse(parser, form, form.write({"text": text})) != {"text": text}
        wrong += parse(parser, form, form.write({"text": text, "count": "1"})) != {"text": text, "count": 1}
    return wrong


def changed(name):
    """Arguments of other types, with blanks around them: they are read as without."""
    form, parser = FORMS[name], tool_arguments.parser_class(name)
    read = [
        complete(parser, form, form.write({k: blank + v + blank for k, v in OTHERS.items()})) for blank in ("", " ")
    ]
    return read[0] != read[1] or (read[0]["count"], read[0]["flag"]) != (5, True)


def torn(name):
    """Arguments of other types that come in pieces: they are read as those that come at once."""
    form, parser = FORMS[name], tool_arguments.parser_class(name)
    written = form.write(OTHERS)
    whole = complete(parser, form, written)
    assert (whole["count"], whole["flag"]) == (5, True)
    return any(streamed(parser, form, written, step) != whole for step in (1, 3))


def unread(name):
    """An argument that is null, beside a text that begins so or has carriage returns, which XML does not keep."""
    form, parser = FORMS[name], tool_arguments.parser_class(name)
    wrong = 0
    for text in ("nullable", "\r\n\nx\r\n"):
        written = form.write({"count": "null", "text": text})
        wrong += sum(parse(parser, form, written) != {"count": None, "text": text} for parse in (complete, streamed))
    return wrong


def stripped(name):
    """An argument of a call that vLLM forces into the form of Qwen3-Coder: its newlines are not the model's."""
    from vllm.sampling_params import StructuredOutputsParams

    request = tool_arguments._request()
    request.structured_outputs = StructuredOutputsParams(structural_tag="{}")
    built = tool_arguments._built(tool_arguments.parser_class(name), tool_arguments.QWEN3, request)
    said = built.extract_tool_calls(tool_arguments.QWEN3.write({"text": "x"}), request)
    return json.loads(said.tool_calls[0].function.arguments) != {"text": "x"}


def raised(name, unfinished=()):
    """Calls that lack an end: nothing is raised, whole or streamed, unless the arguments are JSON without an end."""
    form, parser = FORMS[name], tool_arguments.parser_class(name)
    written = form.write({"text": tool_arguments.INDENTED})
    for end in range(0, len(written), 7):
        with contextlib.suppress(*unfinished):
            complete(parser, form, written[:end])
        streamed(parser, form, written[:end])
    return 0


def ways(parsers="", xml="", forced=""):
    """Yield the name of each way and the function that goes it, for some parsers or all.

    Args:
        parsers: The names of parsers.
        xml: Of those that parse XML, and know no other type by a text with blanks around it.
        forced: Of those that vLLM forces into another form at times.
    """
    for name in xml.split():
        yield f"{name}, null and carriage returns", partial(unread, name)
    for name in forced.split():
        yield f"{name}, forced", partial(stripped, name)
    for name in parsers.split():
        yield f"{name}, other types", partial(changed, name)
    for name in f"{parsers} {xml}".split() or FORMS:
        yield f"{name}, whole", partial(lost, name, complete)
        yield f"{name}, token by token", partial(lost, name, streamed)
        yield f"{name}, three tokens at a time", partial(lost, name, partial(streamed, step=3))
        yield f"{name}, subclass", partial(lost, name, complete, subclass)
        yield f"{name}, other types in a stream", partial(torn, name)
        unfinished = (json.JSONDecodeError,) if name in xml.split() else ()
        yield f"{name}, without an end", partial(raised, name, unfinished)
