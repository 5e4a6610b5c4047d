"""Tool calls in the form of each model, through vLLM's parsers; a way returns how many arguments are not as written."""

from functools import partial

from nrl_patches.patches._shared import seed_oss, tool_arguments
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


def raised(name):
    """Calls that lack an end: nothing is raised, whole or streamed."""
    form, parser = FORMS[name], tool_arguments.parser_class(name)
    written = form.write({"text": tool_arguments.INDENTED})
    for end in range(0, len(written), 7):
        complete(parser, form, written[:end])
        streamed(parser, form, written[:end])
    return 0


def ways(parsers=""):
    """Yield the name of each way and the function that goes it, for some parsers or all."""
    for name in parsers.split() or FORMS:
        yield f"{name}, whole", partial(lost, name, complete)
        yield f"{name}, token by token", partial(lost, name, streamed)
        yield f"{name}, three tokens at a time", partial(lost, name, partial(streamed, step=3))
        yield f"{name}, subclass", partial(lost, name, complete, subclass)
        yield f"{name}, other types", partial(changed, name)
        yield f"{name}, without an end", partial(raised, name)
