"""Every weight stream that may reach a RADIO tower; a way returns the part of the scales that are not the stream's.

The blocks are stand-ins, since real ones need vLLM's process groups: ``refit_radio.py`` has those, on one release.
"""

import copy
import pickle
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch

from nrl_patches.patches._shared.dummy_load import UNQUANTIZED

BLOCKS = 2
NAMES = ("ls{}", "ls{}.gamma", "layer_scale{}.lambda1")


def inner(**_):
    model = torch.nn.Module()
    model.encoder = torch.nn.Module()
    model.encoder.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(BLOCKS))
    for block in model.encoder.layers:
        block.ls1, block.ls2 = (torch.nn.Parameter(torch.ones(4), requires_grad=False) for _ in range(2))
        block.weight = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    return model


def tower(change=lambda kind: kind):
    from vllm.model_executor.models import radio

    pixels = {"input_scale": 1.0, "norm_mean": [0.5], "norm_std": [0.5]}  # For 0.11.0, which normalises in the tower.
    with mock.patch.object(radio, "RadioInternVisionModel", inner):
        return change(radio.RadioModel)(config=SimpleNamespace(teachers=None, **pixels))


def subclass(kind):
    return type("MyRadioModel", (kind,), {"__module__": kind.__module__})


def stream(branches, name):
    for block in range(BLOCKS):
        yield f"radio_model.model.blocks.{block}.weight", torch.full((4,), 7.0 + block)
        for branch in branches:
            yield f"radio_model.model.blocks.{block}.{name.format(branch)}", scale(block, branch)


def scale(block, branch):
    return torch.full((4,), 0.25 + block + branch / 8)


def dummy_filled(model):
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(model, UNQUANTIZED)


def differs(model, branches):
    expected = {
        (block, branch): scale(block, branch) if branch in branches else torch.ones(4)
        for block in range(BLOCKS)
        for branch in (1, 2)
    }
    layers = model.model.encoder.layers
    found = {(block, branch): getattr(layers[block], f"ls{branch}") for block, branch in expected}
    return sum(not torch.equal(found[place], right) for place, right in expected.items()) / len(expected)


def refitted(branches, carry=list, name=NAMES[1], kind=lambda kind: kind, change=lambda model: model):
    model = change(tower(kind))
    dummy_filled(model)
    model.load_weights(weights=carry(stream(branches, name)))
    return differs(model, branches)


def in_batches(branches):
    model = tower()
    dummy_filled(model)
    for entry in stream(branches, NAMES[0]):
        model.load_weights([entry])
        model.load_weights(iter([]))
    return differs(model, branches)


def reloaded(branches, times=1):
    """By layerwise reload, where the release has it."""
    from vllm.model_executor.model_loader import reload

    model = tower()
    reload.record_metadata_for_reloading(model)
    dummy_filled(model)
    for _ in range(times):
        reload.initialize_layerwise_reload(model)
        model.load_weights(stream(branches, NAMES[1]))
        reload.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
    return differs(model, branches)


def ways():
    """Yield the name of each way and the function that goes it."""
    for label, branches in {"no scale": (), "only ls1": (1,), "only ls2": (2,), "both": (1, 2)}.items():
        yield f"{label}, a list", partial(refitted, branches)
        yield f"{label}, an iterator", partial(refitted, branches, iter)
        yield f"{label}, a dict", partial(refitted, branches, dict)
        yield f"{label}, in batches of one", partial(in_batches, branches)
        yield f"{label}, layerwise reload", partial(reloaded, branches)
        yield f"{label}, layerwise reload twice", partial(reloaded, branches, times=2)
    for name in NAMES:
        yield f"both, as {name.format(1)}", partial(refitted, (1, 2), name=name)
    yield "a subclass of the tower", partial(refitted, (1, 2), kind=subclass)
    yield "deepcopy", partial(refitted, (1, 2), change=copy.deepcopy)
    yield "pickle", partial(refitted, (1, 2), change=lambda model: pickle.loads(pickle.dumps(model)))
