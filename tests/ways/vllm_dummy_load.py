"""Every shape of a model that vLLM's dummy loader fills; a way returns 0 if constants, and nothing else, are kept."""

import copy
import pickle
import sys
from functools import partial

import torch

from nrl_patches.patches._shared.dummy_load import CONSTANT, UNQUANTIZED


def leaf():
    model = torch.nn.Module()
    model.register_buffer("constant", torch.tensor(CONSTANT))
    model.register_buffer("other", torch.tensor(CONSTANT), persistent=False)
    model.weight = torch.nn.Parameter(torch.tensor(CONSTANT), requires_grad=False)
    return model


def nested():
    model = leaf()
    model.blocks = torch.nn.ModuleList([leaf(), torch.nn.Sequential(leaf())])
    return model


def shared():
    """One module in two places, and one buffer in two modules."""
    model = leaf()
    model.first = model.second = leaf()
    model.first.register_buffer("same", model.constant)
    return model


def subclass_of_buffer():
    model = leaf()
    model.register_buffer("counter", torch.tensor([1, 2, 3]))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model.register_buffer("empty", None)
    return model


def fill(model):
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader import get_model_loader

    loader = get_model_loader(LoadConfig(load_format="dummy"))
    if hasattr(loader, "load_weights"):
        loader.load_weights(model, UNQUANTIZED)
    else:
        sys.modules[type(loader).__module__].initialize_dummy_weights(model)


def wrong(make, change=lambda model: model, times=1):
    model, untouched = change(make()), make()
    names = list(model.state_dict())
    for _ in range(times):
        fill(model)
    kept = all(torch.equal(b, dict(untouched.named_buffers())[n]) for n, b in model.named_buffers())
    filled = all(weight.item() != CONSTANT for weight in model.parameters())
    return float(not (kept and filled and list(model.state_dict()) == names))


def in_inference_mode():
    with torch.inference_mode():
        return wrong(leaf)


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "one module", partial(wrong, leaf)
    yield "nested modules", partial(wrong, nested)
    yield "shared modules and buffers", partial(wrong, shared)
    yield "buffers of all kinds", partial(wrong, subclass_of_buffer)
    yield "filled twice", partial(wrong, nested, times=2)
    yield "in inference mode", in_inference_mode
    yield "deepcopy", partial(wrong, nested, copy.deepcopy)
    yield "pickle", partial(wrong, nested, lambda model: pickle.loads(pickle.dumps(model)))
