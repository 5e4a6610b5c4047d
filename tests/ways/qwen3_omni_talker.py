"""Every way to make the configuration of Qwen3-Omni's talker; a way returns 0.0 if its parts are what was given."""

import copy
import pickle
import tempfile

SIZES = {"hidden_size": 24, "num_hidden_layers": 3}


def kinds():
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as qwen

    return qwen.Qwen3OmniMoeTalkerConfig, {
        "code_predictor_config": qwen.Qwen3OmniMoeTalkerCodePredictorConfig,
        "text_config": qwen.Qwen3OmniMoeTalkerTextConfig,
    }


def wrong(made):
    _, parts = kinds()
    right = [
        type(getattr(made, name)) is kind and all(getattr(getattr(made, name), n) == size for n, size in SIZES.items())
        for name, kind in parts.items()
    ]
    return float(not all(right))


def objects(kind=None):
    """Configurations, which are kept as they are."""
    talker, parts = kinds()
    given = {name: part(**SIZES) for name, part in parts.items()}
    made = (kind or talker)(**given)
    return wrong(made) + float(any(getattr(made, name) is not part for name, part in given.items()))


def dictionaries():
    talker, parts = kinds()
    return wrong(talker(**dict.fromkeys(parts, SIZES)))


def one_of_each():
    talker, parts = kinds()
    return wrong(talker(code_predictor_config=SIZES, text_config=parts["text_config"](**SIZES)))


def none():
    talker, parts = kinds()
    return float(any(type(getattr(talker(), name)) is not part for name, part in parts.items()))


def made():
    talker, parts = kinds()
    return talker(**{name: part(**SIZES) for name, part in parts.items()})


def again():
    return wrong(type(made()).from_dict(made().to_dict()))


def saved():
    with tempfile.TemporaryDirectory() as folder:
        made().save_pretrained(folder)
        return wrong(type(made()).from_pretrained(folder))


def replaced():
    """As `dataclasses.replace` does, and hydra: every field is given again, the parts as objects."""
    talker, parts = kinds()
    before = made()
    fields = {name: value for name, value in before.to_dict().items() if name in {"num_code_groups", "speaker_id"}}
    return wrong(talker(**fields, **{name: getattr(before, name) for name in parts}))


def subclass():
    talker, _ = kinds()
    return objects(type("Renamed", (talker,), {"__module__": talker.__module__}))


def whole():
    """The configuration of the whole model, with that of the talker as an object."""
    import transformers

    return wrong(transformers.Qwen3OmniMoeConfig(talker_config=made().to_dict()).talker_config)


def ways():
    """Yield the name of each way and the function that goes it."""
    for way in (objects, dictionaries, one_of_each, none, again, saved, replaced, subclass, whole):
        yield way.__name__.replace("_", " "), way
    yield "deepcopy", lambda: wrong(copy.deepcopy(made()))
    yield "pickle", lambda: wrong(pickle.loads(pickle.dumps(made())))
