"""Every way by which the coordinator of a data parallel vLLM starts, late or not at all; 0 where all is well."""

import multiprocessing
import multiprocessing.connection
import os
import time
from functools import partial
from types import SimpleNamespace
from unittest import mock

ADDRESSES = ("front", "output", "publish")


def waits(*, ready_after, variable=None):
    """Have the method wait for a process that reports after some seconds, by a clock that does not run."""
    from vllm import envs
    from vllm.v1.engine.coordinator import DPCoordinator

    def wait(objects, timeout):
        return objects[:1] if timeout >= ready_after else []

    coordinator = object.__new__(DPCoordinator)
    coordinator.proc = SimpleNamespace(sentinel=object())
    closed = []
    pipe = SimpleNamespace(recv=lambda: ADDRESSES, close=lambda: closed.append(1))
    setting = {"VLLM_ENGINE_READY_TIMEOUT_S": str(variable)} if variable else {}
    forget_cached(envs)
    with mock.patch.object(multiprocessing.connection, "wait", wait), mock.patch.dict(os.environ, setting):
        try:
            found = coordinator._wait_for_zmq_addrs(zmq_addr_pipe=pipe)
        except RuntimeError as error:
            found = str(error)
    assert closed == [1]
    return found


def forget_cached(envs):
    """Let a variable be read again, where vLLM remembers it."""
    getattr(vars(envs).get("__getattr__"), "cache_clear", lambda: None)()


def reports(**options):
    return waits(**options) != ADDRESSES


def gives_up(**options):
    """One that is later than the variable allows is an error still."""
    return "failed to report ZMQ addresses" not in waits(**options)


def process(way):
    """Start a real process that reports at once, dies without a word, or is killed."""
    from vllm.v1.engine.coordinator import DPCoordinator

    receiving, sending = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    coordinator = object.__new__(DPCoordinator)
    coordinator.proc = context.Process(target=way, args=(sending,))
    coordinator.proc.start()
    sending.close()
    try:
        return coordinator._wait_for_zmq_addrs(receiving)
    except RuntimeError as error:
        return str(error)
    finally:
        coordinator.proc.kill()
        coordinator.proc.join()


def answer(pipe):
    pipe.send(ADDRESSES)
    time.sleep(60)


def die(pipe):
    pipe.close()


def dies_at_once():
    """It is noticed when it happens: another message says that the time is over."""
    return "failed during startup" not in process(die)


def ways():
    """Yield the name of each way and the function that goes it."""
    yield "at once", partial(reports, ready_after=0)
    yield "after 20 s", partial(reports, ready_after=20)
    yield "after 599 s", partial(reports, ready_after=599)
    yield "after 900 s, which the variable allows", partial(reports, ready_after=900, variable=1000)
    yield "after 25 s, with a variable of 5", partial(reports, ready_after=25, variable=5)
    yield "after 700 s", partial(gives_up, ready_after=700)
    yield "a process that reports", lambda: process(answer) != ADDRESSES
    yield "a process that dies", dies_at_once
