"""Every way by which a request and the transfers of its KV cache end in vLLM's scheduler; 0 where all is well."""

import asyncio
import logging
import pickle
from functools import partial
from unittest import mock

from nrl_patches.patches._shared import kv_transfers


def leaves(steps, *, saves=True, names=("a",), of=lambda kind: kind):
    """Abort requests while they load, report what ended; return how many blocks are left after the last report.

    A step is the requests whose load is over, and those that are saved. Before the last one that counts, the blocks
    are still held.
    """
    engine = kv_transfers.scheduler(saves=saves, of=of)
    before = kv_transfers.free_blocks(engine)
    kv_transfers.abort_while_loading(engine, *names)
    for load, save in steps:
        kv_transfers.report(engine, load=load, save=save)
    return before - kv_transfers.free_blocks(engine) + len(engine.requests)


def holds_until_both(first, second):
    """Between the two reports the blocks are not given to another request."""
    engine = kv_transfers.scheduler(saves=True)
    before = kv_transfers.free_blocks(engine)
    kv_transfers.abort_while_loading(engine, "a")
    kv_transfers.report(engine, **{first: ["a"]})
    held = before - kv_transfers.free_blocks(engine)
    kv_transfers.report(engine, **{second: ["a"]})
    return (held != 1) + before - kv_transfers.free_blocks(engine)


def others_go_on():
    """A request that is not aborted is loaded and runs, while another one's transfers end."""
    engine = kv_transfers.scheduler(saves=True)
    engine.add_request(kv_transfers.request("b"))
    kv_transfers.abort_while_loading(engine, "a")
    kv_transfers.report(engine, load=["a", "b"], save=["a"])
    engine.schedule()
    return [name.request_id for name in engine.running] != ["b"]


def same_name_again():
    """A new request with the id of one that is gone is loaded and runs."""
    engine = kv_transfers.scheduler(saves=True)
    kv_transfers.abort_while_loading(engine, "a")
    kv_transfers.report(engine, load=["a"], save=["a"])
    engine.add_request(kv_transfers.request("a"))
    engine.schedule()
    kv_transfers.report(engine, load=["a"])
    engine.schedule()
    return [name.request_id for name in engine.running] != ["a"]


def aborted_twice():
    """A second abort, as of a client that has left and timed out, changes nothing."""
    from vllm.v1.request import RequestStatus

    engine = kv_transfers.scheduler(saves=True)
    before = kv_transfers.free_blocks(engine)
    kv_transfers.abort_while_loading(engine, "a")
    kv_transfers.report(engine, load=["a"])
    engine.finish_requests(["a"], RequestStatus.FINISHED_ABORTED)
    kv_transfers.report(engine, save=["a"])
    return before - kv_transfers.free_blocks(engine) + len(engine.requests)


def is_an_error_while_running(transfer):
    """A transfer that is reported of a request that runs would free what is in use; returns 0 if it is refused."""
    from vllm.v1.outputs import KVConnectorOutput

    engine = kv_transfers.scheduler(saves=True)
    engine.add_request(kv_transfers.request("a"))
    engine.schedule()
    kv_transfers.report(engine, load=["a"])
    engine.schedule()
    assert [request.request_id for request in engine.running] == ["a"]
    held = kv_transfers.free_blocks(engine)
    try:
        engine._update_from_kv_xfer_finished(KVConnectorOutput(**{transfer: {"a"}}))
    except AssertionError:
        return held - kv_transfers.free_blocks(engine)
    return 1


def is_told(*steps):
    """What nobody awaits is ignored with one warning."""
    with mock.patch.object(logging.getLogger("nrl_patches"), "warning") as warning:
        return leaves(steps) + (warning.call_count != 1)


def derived(kind):
    """Return a subclass that overrides what is patched, as schedulers of other packages do."""

    class Scheduler(kind):
        def _free_request(self, *args, **kwargs):
            return super()._free_request(*args, **kwargs)

        def _connector_finished(self, request):
            return super()._connector_finished(request)

        def _update_from_kv_xfer_finished(self, kv_connector_output):
            return super()._update_from_kv_xfer_finished(kv_connector_output=kv_connector_output)

    return Scheduler


def asynchronous(kind):
    """Return vLLM's scheduler for asynchronous steps, which derives from the ordinary one."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    assert issubclass(AsyncScheduler, kind)
    return AsyncScheduler


def in_a_thread(way):
    """Run a way in another thread, as an engine's core may."""
    return asyncio.run(asyncio.to_thread(way))


def pickled():
    """The class of a scheduler is sent by name, as a setting."""
    kind = kv_transfers.scheduler_class()
    return pickle.loads(pickle.dumps(kind)) is not kind


def ways():
    """Yield the name of each way and the function that goes it."""
    load, save = (("a",), ()), ((), ("a",))
    yield "load, then save", partial(leaves, [load, save])
    yield "save, then load", partial(leaves, [save, load])
    yield "both at once", partial(leaves, [(("a",), ("a",))])
    yield "blocks are held from load to save", partial(holds_until_both, "load", "save")
    yield "blocks are held from save to load", partial(holds_until_both, "save", "load")
    yield "two requests, crossed", partial(leaves, [(("a",), ("b",)), (("b",), ("a",))], names=("a", "b"))
    yield "load alone", partial(leaves, [load], saves=False)
    yield "load, reported twice", partial(leaves, [load, load], saves=False)
    yield "load, then a save that nobody awaits", partial(leaves, [load, save], saves=False)
    yield "save, reported twice", partial(leaves, [load, save, save])
    yield "save, reported twice, is told", partial(is_told, load, save, save)
    yield "load, reported twice before the save, is told", partial(is_told, load, load, save)
    yield "a second abort", aborted_twice
    yield "a load of a request that runs", partial(is_an_error_while_running, "finished_recving")
    yield "a save of a request that runs", partial(is_an_error_while_running, "finished_sending")
    yield "other requests go on", others_go_on
    yield "the same id again", same_name_again
    yield "a derived scheduler", partial(leaves, [load, save], of=derived)
    yield "the asynchronous scheduler", partial(leaves, [load, save], of=asynchronous)
    yield "in a thread", partial(in_a_thread, partial(leaves, [load, save]))
    yield "the class, pickled", pickled
