"""Every way to put an integer into a field that declares a float; a way returns the part of its cases that is wrong.

Right is what the same configuration does with the float of that value, and what a field does that declares
``float | int``, as transformers declares those that it has widened.
"""

import copy
import dataclasses
import enum
import itertools
import json
import pickle
import tempfile
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from nrl_patches.patches._shared.quiet import quiet

FIELD = "router_aux_loss_coef"

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "output_router_logits": True,
}

INTEGERS = (0, 1, -3, 10**400, enum.IntEnum("Level", ["LOW"]).LOW)
OTHERS = (True, False, 0.0, 1.5, float("nan"), "0", b"0", 1j, None, ...)
ELEMENTS = (*INTEGERS, *OTHERS)


def declared(number):
    """Return what a field may declare about a number, by what it is called."""
    return {
        "a number": number,
        "a number or None": number | None,
        "typing.Optional": typing.Optional[number],  # noqa: UP045 - both forms are declared
        "a string or a number": typing.Union[str, number],  # noqa: UP007
        "a boolean or a number": bool | number,
        "an integer or a number": int | number,
        "a list": list[number],
        "a dictionary": dict[str, number],
        "a dictionary by number": dict[number, str],
        "a tuple of any length": tuple[number, ...],
        "a pair": tuple[str, number],
        "a set": set[number],
        "a sequence": Sequence[number],
        "a list of lists or None": list[list[number]] | None,
    }


def cases():
    """Yield whatever a field may be given."""
    yield from ELEMENTS
    for one, other in itertools.product(ELEMENTS, (0.5, 2, True)):
        yield from ([one, other], {"a": one, "b": other}, {one: "a", other: "b"}, (one, other), ("a", other), {one})
        yield from ([[one], [other]], (one, other, one), [], {}, ())


def field_of(kind):
    from huggingface_hub.dataclasses import strict

    return strict(dataclasses.make_dataclass("Config", [("field", kind)]))


def taken(kind, value):
    """Whether a field takes a value, and keeps that very object."""
    from huggingface_hub.errors import StrictDataclassFieldValidationError

    try:
        config = kind(field=value)
    except StrictDataclassFieldValidationError:
        return False
    assert config.field is value
    return True


def as_where_both_are_declared(name):
    """The part of the values that one of the two takes, and the other refuses."""
    # A float that is declared beside an integer is no other declaration.
    one, both = field_of(declared(float)[name]), field_of(declared(float | int)[name])
    wrong = [value for value in cases() if taken(one, value) != taken(both, value)]
    return len(wrong) / sum(1 for _ in cases())


def refused(value):
    from huggingface_hub.errors import StrictDataclassFieldValidationError

    try:
        by_keyword(value)
    except StrictDataclassFieldValidationError:
        return 0.0
    return 1.0


def kept(make):
    """Whether a configuration of an integer has it, and is saved as it was given; by a float it is what it always was.

    Args:
        make: Makes a configuration of a value of the field.
    """
    integral, real = make(0), make(0.0)
    integral.name_or_path = real.name_or_path = ""  # AutoConfig notes the folder.
    saved = integral.to_json_string(), real.to_json_string()
    right = type(getattr(integral, FIELD)) is int
    right &= type(getattr(real, FIELD)) is float and real.to_dict() == integral.to_dict()
    right &= saved[0] == saved[1].replace(f'"{FIELD}": 0.0', f'"{FIELD}": 0')
    return 1.0 - (right and saved[0] != saved[1])


def by_keyword(value, **others):
    from transformers import MixtralConfig

    return MixtralConfig(**{FIELD: value}, **others)


def from_dict(value):
    from transformers import MixtralConfig

    return MixtralConfig.from_dict({FIELD: value})


def from_file(value, *, by_auto=False):
    from transformers import AutoConfig, MixtralConfig

    with tempfile.TemporaryDirectory() as folder:
        content = json.dumps({"model_type": "mixtral", FIELD: value})
        Path(folder, "config.json").write_text(content, encoding="utf-8")
        return (AutoConfig if by_auto else MixtralConfig).from_pretrained(folder)


def saved_and_loaded(value):
    with tempfile.TemporaryDirectory() as folder:
        by_keyword(value).save_pretrained(folder)
        return type(by_keyword(0.5)).from_pretrained(folder)


def overridden(value):
    with tempfile.TemporaryDirectory() as folder:
        by_keyword(0.5).save_pretrained(folder)
        return type(by_keyword(0.5)).from_pretrained(folder, **{FIELD: value})


def assigned(value):
    config = by_keyword(0.5)
    setattr(config, FIELD, value)
    return config


def updated(value):
    config = by_keyword(0.5)
    config.update({FIELD: value})
    return config


def subclass(value, *, init):
    from transformers import MixtralConfig

    class Mine(MixtralConfig):
        if init:

            def __init__(self, **kwargs):
                super().__init__(**kwargs)

    return Mine(**{FIELD: value})


def nested():
    """A part of a configuration, given as a dictionary."""
    from transformers import LlavaConfig

    config = LlavaConfig(text_config={"model_type": "mixtral", FIELD: 0})
    return float(type(getattr(config.text_config, FIELD)) is not int)


def trained():
    """How far the loss and the gradients of a model are from those of one that was configured by floats."""
    from transformers import MixtralForCausalLM

    found = []
    for number in (int, float):
        torch.manual_seed(0)
        others = {"attention_dropout": number(0), "rms_norm_eps": number(1), "initializer_range": number(1)}
        model = MixtralForCausalLM(by_keyword(number(2), **others, **TINY)).train()
        ids = torch.arange(12)[None]
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    return float(not all(map(torch.equal, *found)))


def ways():
    """Yield the name of each way and the function that goes it."""
    for name in declared(float):
        yield f"declared: {name}", partial(as_where_both_are_declared, name)
    for value in (True, False, "0", None, [0]):
        yield f"{value!r} is refused", partial(refused, value)
    for name, make in {
        "by keyword": by_keyword,
        "from_dict": from_dict,
        "config.json": from_file,
        "config.json, AutoConfig": partial(from_file, by_auto=True),
        "save_pretrained, from_pretrained": saved_and_loaded,
        "from_pretrained, overridden": overridden,
        "assigned": assigned,
        "updated": updated,
        "deepcopy": lambda value: copy.deepcopy(by_keyword(value)),
        "pickle": lambda value: pickle.loads(pickle.dumps(by_keyword(value))),
        "subclass": partial(subclass, init=False),
        "subclass with its own __init__": partial(subclass, init=True),
    }.items():
        yield name, partial(quietly, partial(kept, make))
    yield "a part, as a dictionary", partial(quietly, nested)
    yield "a model trains as by floats", partial(quietly, trained)


def quietly(way):
    from huggingface_hub.errors import StrictDataclassFieldValidationError

    with quiet():
        try:
            return way()
        except StrictDataclassFieldValidationError:
            return 1.0  # The defect itself is no limit of the release.
