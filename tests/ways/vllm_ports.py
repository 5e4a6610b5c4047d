"""Every way by which an engine of vLLM chooses ports for its workers; a way returns 0 where all is well."""

import contextlib
import inspect
import os
import threading
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from unittest import mock

import torch.distributed

from nrl_patches.patches._shared import free_ports, ray_driver

MESSAGE = {"tokens": [1, 2, 3]}


@contextlib.contextmanager
def searching_from(port):
    """Have ``VLLM_PORT`` say where searches begin, or nothing."""
    with mock.patch.dict(os.environ, {"VLLM_PORT": str(port)} if port else {}):
        if not port:
            os.environ.pop("VLLM_PORT", None)
        yield


def queue(**options):
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    return MessageQueue(n_reader=1, n_local_reader=0, connect_ip="127.0.0.1", **options)


def address_of(made):
    handle = made.export_handle()
    return str(getattr(handle, "remote_subscribe_addr", None) or handle.remote_subscribe_port)


def keeps_its_first_port():
    """Where nobody is faster, a queue has the port that it has always had; later releases let the kernel choose."""
    first = free_ports.in_a_row(8)
    with searching_from(first):
        return not address_of(queue()).endswith(str(first)) and not kernel_chooses()


def kernel_chooses():
    from vllm.distributed.device_communicators import shm_broadcast

    return not hasattr(shm_broadcast, "get_open_port")


def at_once(count, *, port=True):
    """Build queues that have all chosen their port before any of them has it."""
    import zmq

    bind, together, first = zmq.Socket.bind, threading.Barrier(count, timeout=60), threading.local()
    made = []

    def bind_together(self, address):
        if address.startswith("tcp://") and not vars(first):
            first.over = True
            together.wait()
        return bind(self, address)

    def build():
        made.append(queue())

    with (
        mock.patch.object(zmq.Socket, "bind", bind_together),
        mock.patch.object(threading, "excepthook"),
        searching_from(free_ports.in_a_row(16) if port else None),
    ):
        threads = [threading.Thread(target=build) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return count - len({address_of(one) for one in made})


def read_by_another():
    """A queue that had to choose again is read at the address that its handle says."""
    import zmq
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    taken = zmq.Context.instance().socket(zmq.PUB)
    bind, first = zmq.Socket.bind, []

    def lose_the_first(self, address):
        if address.startswith("tcp://") and not first:
            first.append(address)
            bind(taken, address)
        return bind(self, address)

    with mock.patch.object(zmq.Socket, "bind", lose_the_first), searching_from(free_ports.in_a_row(8)):
        writer = queue()
    reader = MessageQueue.create_from_handle(writer.export_handle(), rank=0)
    writing = threading.Thread(target=writer.wait_until_ready)
    writing.start()
    reader.wait_until_ready()
    writing.join()
    writer.enqueue(MESSAGE)
    timed = "timeout" in inspect.signature(reader.dequeue).parameters  # Not in 0.6.
    return reader.dequeue(**({"timeout": 20} if timed else {})) != MESSAGE


def wrong_address():
    """An address that is none of this machine's is refused at once, as it is without the patch."""
    import zmq

    tries, bind = [], zmq.Socket.bind

    def count(self, address):
        tries.append(address)
        return bind(self, address)

    with mock.patch.object(zmq.Socket, "bind", count), searching_from(None):
        try:
            queue_at("192.0.2.1")
        except zmq.ZMQError as error:
            return error.errno == zmq.EADDRINUSE or sum(a.startswith("tcp") for a in tries) > 1
    return 0.0  # Up to 0.8.4 the address of the machine is not used for this.


def queue_at(address):
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    return MessageQueue(n_reader=1, n_local_reader=0, connect_ip=address)


def store_opens(*, port=True, low_ports=False):
    """Start an engine over two nodes, and open the store where rank 0 is told to."""
    if find_spec(ray_driver.MODULE) is None:
        return 0.0
    held = contextlib.nullcontext() if low_ports else free_ports.no_low_ports()
    with (
        held,
        searching_from(free_ports.in_a_row(200) if port else None),
        mock.patch.dict(os.environ, VLLM_MQ_MAX_CHUNK_BYTES_MB="1"),
    ):
        executor, address = ray_driver.start()
        store = next(torch.distributed.rendezvous(f"{address}?rank=0&world_size=1", timeout=timedelta(seconds=20)))[0]
    return store is None or executor.rpc_broadcast_mq.export_handle().remote_subscribe_addr == address


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "a queue alone keeps its port", keeps_its_first_port
    for count in (2, 5):
        yield f"{count} queues at once", partial(at_once, count)
    yield "2 queues at once without VLLM_PORT", partial(at_once, 2, port=False)
    yield "a queue that chose again is read", read_by_another
    yield "an address of another machine", wrong_address
    yield "an engine over two nodes", store_opens
    yield "an engine over two nodes, low ports allowed", partial(store_opens, low_ports=True)
    yield "an engine over two nodes, without VLLM_PORT", partial(store_opens, port=False)
