"""What becomes of tensors on GPUs whose UUIDs are known to one side only, do not help, or are sent by others as well.

    python cuda_ipc.py

Tensors of the CPU stand for those on GPUs, but for the last cases, in which nothing is replaced.
"""

import contextlib
import functools
import io
import json
import pickle
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from unittest import mock

import torch
import torch.multiprocessing
from patches.told import told
from torch.multiprocessing import reductions

import nrl_patches
from nrl_patches.patches._shared import cpu_for_gpus

PATCH = "torch.cuda_ipc_device_index"
SIDES = {"neither": (False, False), "sender": (True, False), "receiver": (False, True), "both": (True, True)}


def side(*, is_patched):
    return contextlib.nullcontext() if is_patched else nrl_patches.undo(PATCH)


def sent(gpus="AB", *, is_patched=True):
    with side(is_patched=is_patched), cpu_for_gpus.seeing(gpus):
        return bytes(ForkingPickler.dumps(torch.ones(4)))


def received(pickled, gpus="BA", *, is_patched=True):
    with side(is_patched=is_patched), cpu_for_gpus.seeing(gpus):
        return pickle.loads(pickled)


def arrival(index=0, sender="AB", receiver="BA", *, of_sender=True, of_receiver=True):
    """Return on which GPU a tensor is opened."""
    with cpu_for_gpus.sharing(lambda _: index) as opened:
        received(sent(sender, is_patched=of_sender), receiver, is_patched=of_receiver)
    return opened


class Names(pickle.Unpickler):
    """Notes what a pickle names."""

    def __init__(self, pickled):
        super().__init__(io.BytesIO(pickled))
        self.names = set()

    def find_class(self, module, name):
        self.names.add(module.partition(".")[0])
        return super().find_class(module, name)


def what_a_pickle_names():
    with cpu_for_gpus.sharing(lambda _: 0):
        names = Names(sent())
        with cpu_for_gpus.seeing("AB"):
            names.load()
    return sorted(names.names)


def twice(receiver):
    """Receive two tensors of one GPU, and one of another, in one process."""
    with cpu_for_gpus.sharing(lambda tensor: int(tensor[0])) as opened:
        with cpu_for_gpus.seeing("AB"):
            pickled = [bytes(ForkingPickler.dumps(torch.full((4,), value))) for value in (0.0, 0.0, 1.0)]
        with cpu_for_gpus.seeing(receiver):
            for each in pickled:
                pickle.loads(each)
    return opened


def without_uuid():
    """torch builds that do not tell UUIDs, here of the only GPU: no other one has the same."""
    with cpu_for_gpus.sharing(lambda _: 0) as opened:
        with (
            cpu_for_gpus.seeing("A"),
            mock.patch.object(torch.cuda, "get_device_properties", return_value=SimpleNamespace()),
        ):
            pickled = bytes(ForkingPickler.dumps(torch.ones(4)))
        with cpu_for_gpus.seeing("BA"):
            pickle.loads(pickled)
    return opened


def in_a_fork():
    """A process in which CUDA cannot be used, and torch raises."""
    with cpu_for_gpus.sharing(lambda _: 0) as opened:
        pickled = sent()
        refused = RuntimeError("Cannot re-initialize CUDA in forked subprocess.")
        with cpu_for_gpus.seeing("BA"), mock.patch.object(torch.cuda, "device_count", side_effect=refused):
            pickle.loads(pickled)
    return opened


def under_peers():
    """A peer's replacement on top, which sends a UUID in place of the index, as SGLang's does."""
    reduce_tensor, rebuild = reductions.reduce_tensor, reductions.rebuild_cuda_tensor

    def by_uuid(tensor):
        _, arguments = reduce_tensor(tensor)
        uuid = torch.cuda.get_device_properties(arguments[6]).uuid
        return from_uuid, (*arguments[:6], uuid, *arguments[7:])

    def from_uuid(*arguments):
        uuids = [torch.cuda.get_device_properties(n).uuid for n in range(torch.cuda.device_count())]
        return rebuild(*arguments[:6], uuids.index(arguments[6]), *arguments[7:])

    with cpu_for_gpus.sharing(lambda _: 0) as opened:
        with cpu_for_gpus.seeing("AB"):
            function, arguments = by_uuid(torch.ones(4))
        with cpu_for_gpus.seeing("BA"):
            function(*arguments)
    return opened


def of_the_cpu():
    """Send a tensor of the CPU where a look at a GPU would raise."""
    with mock.patch.object(torch.cuda, "get_device_properties", side_effect=AssertionError("looked at a GPU")):
        got = pickle.loads(ForkingPickler.dumps(torch.ones(4)))
    return torch.equal(got, torch.ones(4)) and not torch.cuda.is_initialized()


def without_cuda(*, is_patched):
    """Receive a tensor of a GPU on a build without CUDA, as torch has it."""
    with cpu_for_gpus.sharing(lambda _: 0):
        pickled = sent()
    with side(is_patched=is_patched):
        pickle.loads(pickled)


def old_pickles():
    """What else torch's function is there for."""
    rebuild = torch._tensor._rebuild_from_type
    kind = type("Mine", (torch.Tensor,), {})
    mine = rebuild(torch.ones, kind, (2,), {"mine": 1})
    plain = rebuild(torch.ones, torch.Tensor, (2,), {"uuid": "A"})
    return type(mine) is kind and mine.mine == 1 and type(plain) is torch.Tensor and not hasattr(plain, "uuid")


def cases():
    for name, (of_sender, of_receiver) in SIDES.items():
        for receiver in ("BA", "B", "A", "C", ""):
            sides = {"of_sender": of_sender, "of_receiver": of_receiver}
            yield f"{name}: to {receiver or 'none'}", functools.partial(arrival, receiver=receiver, **sides)
    yield "names", what_a_pickle_names
    yield "not visible", functools.partial(twice, "C")
    yield "partly visible", functools.partial(twice, "B")
    yield "one UUID for all", functools.partial(arrival, 0, "AA", "BA")
    yield "one UUID for all at the receiver", functools.partial(arrival, 0, "AB", "BAA")
    yield "without UUIDs", without_uuid
    yield "in a fork", in_a_fork
    yield "under a peer's", under_peers
    yield "of the CPU", of_the_cpu
    yield "old pickles", old_pickles
    yield "without CUDA: neither", functools.partial(without_cuda, is_patched=False)
    yield "without CUDA: both", functools.partial(without_cuda, is_patched=True)


if __name__ == "__main__":
    found = {"state": nrl_patches.status()[PATCH].state, "cases": {name: told(call) for name, call in cases()}}
    print(json.dumps(found))
