"""Two message queues that start at once on one node choose the same port, and all but one die.

Problem: `MessageQueue.__init__` (distributed/device_communicators/shm_broadcast.py) asks `get_open_port()` for the port
    of its socket for remote readers. That probes a port and frees it again; the bind comes several lines later. With
    `VLLM_PORT` set, every queue of a node searches from that port on.
Hit by: engines that span nodes. The workers of a node that is not the driver's build their queues right after a
    collective, and so within microseconds: `zmq.error.ZMQError: Address already in use`, and the engine does not start.
Fix: a bind that finds its port taken chooses again, up to 64 times. A port that another queue holds is visible to the
    next search, so each attempt gets further.
Remove when: every supported vLLM is 0.28.0 or newer, which binds to a port that the kernel chooses.

Upstream's repair leaves the range above `VLLM_PORT`, which a firewall may be made for and which other programs leave
free. This one stays in it, and changes nothing where the first port is free. NeMo RL rewrites the file on disk instead
(`_patch_vllm_shm_broadcast_bind_retry`); where it did, this patch reports `drifted`.

Not covered: up to 0.7.3 the socket for readers on the same node is a TCP socket too, with the same race.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from nrl_patches import Edit, Observation, Patch
from nrl_patches.patches._shared import free_ports

patch = Patch(
    __name__,
    affected="vllm>=0.6.3,<0.28.0",
    upstream=("https://github.com/vllm-project/vllm/pull/50960",),
    opt_out="NRL_DISABLE_VLLM_SHM_BROADCAST_BIND_RACE_PATCH",
)

patch.rewrite(
    "vllm.distributed.device_communicators.shm_broadcast:MessageQueue.__init__",
    Edit(
        old="self.remote_socket.bind(socket_addr)",
        new="""
            from zmq import EADDRINUSE, ZMQError
            for attempts_left in reversed(range(64)):
                try:
                    self.remote_socket.bind(socket_addr)
                    break
                except ZMQError as error:
                    if error.errno != EADDRINUSE or not attempts_left:
                        raise
                    host = socket_addr.removesuffix(str(remote_subscribe_port))
                    remote_subscribe_port = get_open_port()
                    socket_addr = f"{host}{remote_subscribe_port}"
        """,
    ),
)


@patch.probe
def two_queues_choose_one_port() -> Observation:
    """Build two real queues with a reader elsewhere; each binds when both have chosen their port.

    Each has a reader here too, without which 0.6.5 to 0.6.6.post1 build none. Its own address tells the two sockets
    apart. One chooses after the other: a search that meets another one takes its port for taken.
    """
    import zmq
    from vllm.distributed.device_communicators import shm_broadcast

    bind, both, turn, chosen = zmq.Socket.bind, threading.Barrier(2, timeout=60), threading.Lock(), threading.local()

    def bind_when_both_have_chosen(self: Any, address: str) -> Any:
        if address.startswith("tcp://") and not address.startswith("tcp://127.0.0.1:") and not vars(chosen):
            chosen.once = True
            turn.release()
            both.wait()
        return bind(self, address)

    def build() -> Any:
        turn.acquire()
        return shm_broadcast.MessageQueue(2, 1, max_chunk_bytes=1024, max_chunks=2, connect_ip="127.0.0.2")

    with (
        mock.patch.object(zmq.Socket, "bind", bind_when_both_have_chosen),
        mock.patch.dict(os.environ, VLLM_PORT=str(free_ports.in_a_row(8))),
        ThreadPoolExecutor(2) as pool,
    ):
        errors = [built.exception() for built in [pool.submit(build), pool.submit(build)]]
    taken = [getattr(error, "errno", None) == zmq.EADDRINUSE for error in errors]
    for error in errors:
        if error is not None and not any(taken):
            raise error
    return Observation(any(taken), {"port_taken": taken.count(True), "built": errors.count(None)})
