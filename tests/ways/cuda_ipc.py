"""Every way to send a tensor to a process that sees its GPU under another index; a way returns how many went wrong.

There is no GPU: tensors of the CPU stand for theirs, and what the driver would answer is replaced.
"""

import copy
import inspect
import io
import itertools
import pickle
from functools import partial
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing
from torch.multiprocessing import reductions

from nrl_patches.patches._shared import gpu_index

ORDERS = ("ABC", "CAB", "BAC")


class Special(torch.Tensor):
    """A subclass, which torch's picklers do not know, and its reducer makes a tensor."""


def kinds():
    """Return what is sent, by what it is."""
    rows = torch.arange(32.0).view(4, 8)
    return {
        "a tensor": rows,
        "half precision": rows.bfloat16(),
        "integers": rows.long(),
        "requires_grad": rows.clone().requires_grad_(),
        "a parameter": torch.nn.Parameter(rows.clone()),
        "a frozen parameter": torch.nn.Parameter(rows.long(), requires_grad=False),
        "a view": rows[1:3, ::2],
        "sparse": rows.triu().to_sparse(),
        "sparse rows": rows.triu().to_sparse_csr(),
        "nested": torch.nested.nested_tensor([rows[:1], rows[:3]]),
    }


def parts(tensor):
    """Return what of a tensor can be compared."""
    if tensor.is_nested:
        return tensor.unbind()
    return [tensor.to_dense() if tensor.layout != torch.strided else tensor]


def is_same(got, sent):
    alike = type(got) is type(sent) and (got.dtype, got.requires_grad) == (sent.dtype, sent.requires_grad)
    return alike and all(map(torch.equal, parts(got.detach()), parts(sent.detach())))


def by_pickler(tensor):
    return bytes(ForkingPickler.dumps(tensor))


def by_queue(tensor):
    """What comes out of torch's own pipe."""
    queue = torch.multiprocessing.SimpleQueue()
    queue.put(tensor)
    return queue._reader.recv_bytes()


def by_reducer(tensor, protocol=pickle.HIGHEST_PROTOCOL):
    """The function and its arguments, as engines send them."""
    return pickle.dumps(reductions.reduce_tensor(tensor), protocol)


def call(told):
    rebuild, arguments = pickle.loads(told)
    return rebuild(*arguments)


def call_by_keyword(told):
    _, arguments = pickle.loads(told)
    names = inspect.signature(reductions.rebuild_cuda_tensor).parameters
    return reductions.rebuild_cuda_tensor(**dict(zip(names, arguments, strict=True)))


def call_copied(told):
    return reductions.rebuild_cuda_tensor(*copy.deepcopy(pickle.loads(told)[1]))


class Restricted(pickle.Unpickler):
    """Lets through what TensorRT-LLM does."""

    def find_class(self, module, name):
        if module.split(".")[0] != "torch" and (module, name) not in {("builtins", "int"), ("builtins", "dict")}:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def call_restricted(told):
    rebuild, arguments = Restricted(io.BytesIO(told)).load()
    return rebuild(*arguments)


def forwarded(told, *, gpus):
    """Receive what another process has unpickled and sent on."""
    with gpu_index.seeing(gpus):
        return pickle.dumps(pickle.loads(told))


def wrong(tensor, dumps=by_pickler, loads=pickle.loads, between=lambda told: told, orders=ORDERS):
    """Return how often a tensor arrives on another GPU than its own, or as another."""
    count = 0
    for sender, receiver, index in itertools.product(orders, orders, range(3)):
        with gpu_index.cpu_for_gpus(lambda _, index=index: index) as opened:
            with gpu_index.seeing(sender):
                told = dumps(tensor)
            told = between(told)
            with gpu_index.seeing(receiver):
                got = loads(told)
            home = receiver.index(sender[index])
            count += not (opened and set(opened) == {home} and is_same(got, tensor))
    return count


def wrong_if_empty():
    """The storage of an empty tensor is not opened but made."""
    made = []

    def storage(size, *, dtype, device, _internal):
        made.append(device)
        return torch.storage.TypedStorage(size, dtype=dtype, _internal=_internal)

    with gpu_index.cpu_for_gpus(lambda _: 0):
        with gpu_index.seeing("AB"):
            told = by_reducer(torch.ones(0))
        with gpu_index.seeing("BA"):
            rebuild, arguments = pickle.loads(told)
            rebuild(*arguments[:4], storage, *arguments[5:])
    return made != [1]


def wrong_if_together():
    """Two views of one storage share it after they have arrived, which the second does by torch's cache."""
    rows = torch.arange(8.0)
    with gpu_index.cpu_for_gpus(lambda _: 1) as opened:
        with gpu_index.seeing("AB"):
            told = by_pickler((rows[:4], [rows[2:], torch.ones(3)]))
        with gpu_index.seeing("BA"):
            one, (other, _) = pickle.loads(told)
    shared = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return opened != [0, 0] or not shared or not torch.equal(one[2:], other[:2])


def wrong_if_set(index, receiver):
    """What a receiver sets counts, whatever it sees."""
    with gpu_index.cpu_for_gpus(lambda _: 0) as opened:
        with gpu_index.seeing("AB"):
            told = by_reducer(torch.ones(4))
        with gpu_index.seeing(receiver):
            rebuild, arguments = pickle.loads(told)
            rebuild(*arguments[:6], index, *arguments[7:])
    return opened != [index]


def ways():
    """Yield the name of each way and the function that goes it."""
    sent = kinds()
    for name, tensor in sent.items():
        yield name, partial(wrong, tensor)
        yield f"{name}, by the function and its arguments", partial(wrong, tensor, by_reducer, call)
    tensor = sent["a tensor"]
    yield "subclass", partial(wrong, tensor, lambda rows: by_reducer(rows.as_subclass(Special)), call)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f"pickle protocol {protocol}", partial(wrong, tensor, partial(by_reducer, protocol=protocol), call)
    yield "a queue", partial(wrong, tensor, by_queue)
    yield "by keyword", partial(wrong, tensor, by_reducer, call_by_keyword)
    yield "deepcopy", partial(wrong, tensor, by_reducer, call_copied)
    yield "a restricted unpickler", partial(wrong, tensor, by_reducer, call_restricted)
    for gpus in ((), "A", "CBA"):
        between = partial(forwarded, gpus=gpus)
        yield f"forwarded by a process that sees {gpus or 'none'}", partial(wrong, tensor, by_reducer, call, between)
    yield "empty", wrong_if_empty
    yield "several", wrong_if_together
    for receiver in ("AB", "BA", "B", "C", ""):
        for index in (0, 1):
            yield f"{index} set by one that sees {receiver or 'none'}", partial(wrong_if_set, index, receiver)
