"""Every refit of Voxtral's audio encoder; a way returns how far its positions are from those of its constructor."""

import copy
import math
import pickle
from functools import partial
from types import SimpleNamespace

import torch

from nrl_patches.patches._shared import voxtral
from nrl_patches.patches._shared.dummy_load import UNQUANTIZED

TABLE = "mm_whisper_embeddings.whisper_encoder.embed_positions.weight"


def dummy_loaded(change=lambda kind: kind):
    model = voxtral.model(change)
    before = voxtral.table(model).clone()
    voxtral.fill(model, UNQUANTIZED)
    return model, before


def difference(model, before):
    seen = voxtral.table(model)
    assert (seen.dtype, seen.shape) == (before.dtype, before.shape)
    return (seen - before).abs().max().item()


def refitted(carry=list, change=lambda kind: kind, copied=lambda model: model):
    model, before = dummy_loaded(change)
    model = copied(model)
    returned = model.load_weights(weights=carry(voxtral.stream(model)))
    assert returned == set(returned)
    return difference(model, before)


def in_batches():
    model, before = dummy_loaded()
    for entry in voxtral.stream(model):
        model.load_weights([entry])
    return difference(model, before)


def with_a_table_of_its_own():
    """A stream that carries the table."""
    model, before = dummy_loaded()
    model.load_weights([*voxtral.stream(model), (TABLE, before * 2)])
    return difference(model, before * 2)


def after_sleep():
    """Level 2: the lines of vLLM's GPU worker, with NaN for the memory that it discards."""
    model = voxtral.model()
    before = voxtral.table(model).clone()
    for weight in model.parameters():
        weight.data.fill_(math.nan)
    model.load_weights(voxtral.stream(model))
    return difference(model, before)


def reloaded(times=1):
    """By layerwise reload, where the release has it."""
    from vllm.model_executor.model_loader import reload

    model = voxtral.model()
    reload.record_metadata_for_reloading(model)
    before = voxtral.table(model).clone()
    voxtral.fill(model, UNQUANTIZED)
    for _ in range(times):
        reload.initialize_layerwise_reload(model)
        model.load_weights(list(voxtral.stream(model)))
        reload.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
    return difference(model, before)


def learned():
    """An encoder that learns its positions keeps what it was sent, or the noise that it has."""
    model, _ = dummy_loaded()
    model.whisper_encoder.whisper_encoder.pos_embed_type = "learned"
    noise = voxtral.table(model).clone()
    model.load_weights(voxtral.stream(model))
    return difference(model, noise)


def subclass(kind):
    return type("MyVoxtral", (kind,), {"__module__": kind.__module__})


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "a list", refitted
    yield "an iterator", partial(refitted, iter)
    yield "in batches of one", in_batches
    yield "a table of its own", with_a_table_of_its_own
    yield "sleep level 2", after_sleep
    yield "layerwise reload", reloaded
    yield "layerwise reload twice", partial(reloaded, times=2)
    yield "learned positions", learned
    yield "a subclass of the model", partial(refitted, change=subclass)
    yield "deepcopy", partial(refitted, copied=copy.deepcopy)
    yield "pickle", partial(refitted, copied=lambda model: pickle.loads(pickle.dumps(model)))
