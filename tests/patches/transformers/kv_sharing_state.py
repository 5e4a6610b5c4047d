"""What training a model with KV-shared layers leaves behind, and what it costs.

    python kv_sharing_state.py FAMILY STEPS

Prints the peak of the allocations of one training step, how many tensors more are alive after STEPS further steps, how
many carriers are alive, and whether two models trained in two threads get the gradients that they get one by one.
"""

import gc
import json
import sys
import threading
import warnings

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.profiler import ProfilerActivity, profile

import nrl_patches  # noqa: F401 - the patches are what is tested
from nrl_patches.patches._shared import kv_carrier, kv_sharing, kv_states

TOKENS = torch.arange(1, 49).view(2, 24)


def step(model, tokens=TOKENS):
    model.zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()


def wrap(model, kind):
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = checkpoint_wrapper(layer, checkpoint_impl=kind)


def peak_of_a_step(family, kind=None):
    """In bytes, counted from the allocator's own events: the same in every run."""
    model = kv_sharing.tiny_model(family, hidden_size=128, head_dim=64, intermediate_size=256).train()
    if kind is not None:
        wrap(model, kind)
    tokens = TOKENS.repeat(2, 4) % 64
    step(model, tokens)
    model.zero_grad()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(tokens, labels=tokens, use_cache=False).loss.backward()
    level = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def alive(kind):
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance touches deprecated lazy attributes of what is alive.
        return sum(isinstance(thing, kind) for thing in gc.get_objects())


def growth(family, steps, *, reentrant=False):
    # A donor of each kind and a reader: there are many steps.
    layers = ["sliding_attention", "full_attention", "full_attention"]
    changes = {"num_hidden_layers": len(layers), "num_kv_shared_layers": 1, "layer_types": layers}
    if family == "gemma3n":
        changes["activation_sparsity_pattern"] = [0.0] * len(layers)
    model = kv_sharing.tiny_model(family, **changes).train()
    if reentrant:
        wrap(model, CheckpointImpl.REENTRANT)
    for _ in range(3):
        step(model)
    before = alive(torch.Tensor)
    for _ in range(steps):
        step(model)
    return alive(torch.Tensor) - before


def threads_agree(family):
    tokens = [TOKENS, TOKENS.flip(1) % 64]
    models = [kv_sharing.tiny_model(family).train() for _ in tokens]
    for model, own in zip(models, tokens, strict=True):
        step(model, own)
    alone = [[p.grad for p in model.parameters()] for model in models]

    def train(model, own):
        for _ in range(20):
            step(model, own)

    workers = [threading.Thread(target=train, args=pair) for pair in zip(models, tokens, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = [[p.grad for p in model.parameters()] for model in models]
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for one, other in zip(alone, together, strict=True)
        for a, b in zip(one, other, strict=True)
    )


if __name__ == "__main__":
    family, steps = sys.argv[1], int(sys.argv[2])
    found = {
        "peak": peak_of_a_step(family),
        "peak_reentrant": peak_of_a_step(family, CheckpointImpl.REENTRANT),
        "peak_no_reentrant": peak_of_a_step(family, CheckpointImpl.NO_REENTRANT),
        "growth": growth(family, steps),
        "growth_reentrant": growth(family, steps // 10, reentrant=True),
        "threads_agree": threads_agree(family),
        "carriers": alive((kv_states.SharedStates, kv_carrier.CacheView, kv_states.CarriedGradients)),
    }
    print(json.dumps(found))
