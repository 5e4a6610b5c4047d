"""Gradients of shared keys and values that arrive after their donor's backward pass, under reentrant checkpointing.

    python kv_sharing_late.py FAMILY

In one device's queue they never do. Here the states between the layers that own keys and values and those that share
them are cut, and each side gets a backward pass of its own, the donors' first, as devices that don't wait for one
another could do it. Prints what is told before the optimizer's step, what after, and whether the rest goes on.
"""

import gc
import json
import logging
import os
import sys

import torch
from transformers.utils import logging as upstream

import nrl_patches  # noqa: F401 - the patches are what is tested
from nrl_patches.patches._shared import kv_sharing

TOKENS = torch.arange(1, 17).view(1, -1)


def cut_before(layer):
    """Cut what a layer gets from the one before it; return the list into which that goes instead."""
    kept, kind = [], type(layer)

    def cut(self, states, *args, **kwargs):  # Not in a hook: hooks run inside of the checkpoint.
        kept.append(states)
        # What AltUp writes into must be no leaf.
        return kind.__call__(self, states.detach().requires_grad_().clone(), *args, **kwargs)

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": cut})
    return kept


def step(family, heard, *, late):
    """Go a step; return what is raised, and what is told until the optimizer's step and after it."""
    model = kv_sharing.tiny_model(family).train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": True})
    kept = cut_before(model.model.layers[4]) if late else []
    heard.clear()
    out = model(TOKENS, labels=TOKENS, use_cache=False)
    found = {}
    try:
        for states in kept:
            states.square().mean().backward(retain_graph=True)
        out.loss.backward(retain_graph=True)
        if not late:
            out.loss.backward()  # Those of a second pass are fetched in it.
    except RuntimeError as error:
        found["raised"] = f"{type(error).__name__}: {error}"
    found["before the step"] = list(heard)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    heard.clear()
    del out, model, kept
    gc.collect()
    found["after the step"] = list(heard)
    return found


if __name__ == "__main__":
    upstream.set_verbosity_error()
    heard = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("nrl_patches").addHandler(handler)
    steps = {label: step(sys.argv[1], heard, late=label == "late") for label in ("late", "in time")}
    os.environ["NRL_PATCHES_STRICT"] = "1"
    steps |= {f"{label}, strict": step(sys.argv[1], heard, late=label == "late") for label in steps}
    print(json.dumps(steps))
