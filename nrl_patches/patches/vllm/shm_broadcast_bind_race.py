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
"""

from __future__ import annotations

import os
import threading
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
    """Build two real queues for remote readers; each binds when both have chosen their port."""
    import zmq
    from vllm.distributed.device_communicators import shm_broadcast

    bind, both, first = zmq.Socket.bind, threading.Barrier(2, timeout=20), threading.local()
    queues, refused = [], []

    def bind_when_both_have_chosen(self: Any, address: str) -> Any:
        if address.startswith("tcp://") and not vars(first):
            first.over = True
            both.wait()
        return bind(self, address)

    def build() -> None:
        try:
            queues.append(shm_broadcast.MessageQueue(n_reader=1, n_local_reader=0, connect_ip="127.0.0.1"))
        except zmq.ZMQError as error:
            refused.append(error.errno)

    with (
        mock.patch.object(zmq.Socket, "bind", bind_when_both_have_chosen),
        mock.patch.dict(os.environ, VLLM_PORT=str(free_ports.in_a_row(8))),
    ):
        threads = [threading.Thread(target=build) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for queue in queues:
        queue.remote_socket.close(linger=0)
    return Observation(zmq.EADDRINUSE in refused, {"queues": len(queues), "port_taken": len(refused)})
