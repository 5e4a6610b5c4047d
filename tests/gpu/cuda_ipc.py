"""Tensors sent between processes that list two GPUs in different orders; needs two GPUs, and is no part of a test run.

    python cuda_ipc.py

Sends tensors of each kind on each GPU of the sender by a pickle and by a queue of `torch.multiprocessing`, with
`torch.cuda_ipc_device_index` on neither side, on either and on both. Prints, as JSON, what became of them: the index at
the receiver, whether that is the GPU on which the memory is, whether the tensor is what was sent, and whether it can be
added to one on that GPU. Exits with 0 if, with the patch on both sides, that is so of each tensor whose GPU the
receiver sees, and all else is as without the patch; `wrong` names the rest. The patch is applied in any torch.
"""

import gc
import json
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler

PATCH = "torch.cuda_ipc_device_index"

ORDERS = (("0,1", "0,1"), ("0,1", "1,0"), ("1,0", "0,1"), ("0,1", "1"), ("0,1", "0"), ("1", "0,1"), ("0", "1"))
"""The devices that the sender and the receiver see."""

EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
SETTINGS = {"": {}, ", expandable segments": EXPANDABLE}

SIDES = {"neither": (False, False), "sender": (True, False), "receiver": (False, True), "both": (True, True)}
"""Where the patch is."""

BY_HAND = "index set by hand"


def environment(devices, *, is_patched, **settings):
    """Return the variables of a process. An unpatched one does not import the package at all, nor do its children."""
    switches = {"NRL_PATCHES": str(int(is_patched)), "NRL_PATCHES_ONLY": PATCH, "NRL_PATCHES_FORCE": PATCH}
    return os.environ | {"CUDA_VISIBLE_DEVICES": devices} | switches | settings


def start():
    """Import the package if this process is to have the patch, and return where its warnings are collected."""
    warned = []
    if os.environ["NRL_PATCHES"] == "1":
        import nrl_patches

        handler = logging.Handler()
        handler.emit = lambda record: warned.append(record.getMessage())
        logging.getLogger("nrl_patches").addHandler(handler)
        import torch.multiprocessing

        status = str(nrl_patches.status()[PATCH])
        if f"{PATCH}: applied" not in status:
            raise RuntimeError(status)
        warned.clear()  # That it is applied outside of its releases.
    import torch.multiprocessing  # noqa: F401 - teaches the pickler tensors

    return warned


def uuid(index):
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)


def made(index, device):
    """Return what is sent from a GPU: by name, tensors or pairs of them."""
    import torch

    whole = (torch.arange(1024.0).view(32, 32) + index).to(device)
    shared = (torch.arange(64.0) - index).to(device)
    return {
        "float32": whole,
        "bfloat16": whole.bfloat16(),
        "requires_grad": whole.clone().requires_grad_(),
        "Parameter": torch.nn.Parameter(whole.clone()),
        "frozen Parameter": torch.nn.Parameter(whole.clone(), requires_grad=False),
        "view": whole.clone()[8:24, ::2],
        "two of one storage": (shared[:32], shared[16:]),
        "sparse": whole.triu().to_sparse(),
        "empty": whole.new_empty(0),
        BY_HAND: whole + 1,
    }


def told(got, expected, home, visible):
    """Return what became of a tensor."""
    import torch

    report = {"index": got.device.index, "is_home": uuid(got.device.index) == home}
    same = type(got) is type(expected) and got.dtype == expected.dtype and got.requires_grad == expected.requires_grad
    report["is_right"] = same and torch.equal(got.detach().cpu().to_dense(), expected.detach().to_dense())
    if home in visible:
        try:
            beside = torch.ones(got.shape, dtype=got.dtype, device=f"cuda:{visible.index(home)}")
            report["adds"] = torch.equal((beside + got.detach()).cpu(), expected.detach().to_dense() + 1)
        except RuntimeError as error:
            report["adds"] = str(error).partition("\n")[0][:80]
    return report


def look(get, number, name, home, visible):
    """Return the report of one that was sent, which ``get`` receives."""
    report = {"sent_from": number, "name": name, "is_visible": home in visible}
    try:
        got, expected = get(), made(number, "cpu")[name]
        if isinstance(got, tuple):
            report["share"] = len({each.untyped_storage().data_ptr() for each in got}) == 1
            got, expected = got[1], expected[1]
        report |= told(got, expected, home, visible)
    except RuntimeError as error:
        report["error"] = str(error).partition("\n")[0]
    got = None
    gc.collect()  # Memory that is open stays what it was opened as.
    return report


def by_hand(pickled):
    """Receive a tensor as vLLM's weight transfer, NeMo RL and xFormers do, on the device of this process."""
    rebuild, arguments = pickle.loads(pickled)
    arguments = list(arguments)
    arguments[6] = 0
    return rebuild(*arguments)


def send():
    start()
    import torch
    from torch.multiprocessing.reductions import reduce_tensor

    sent, kept = [], []
    for n in range(torch.cuda.device_count()):
        for name, each in made(n, f"cuda:{n}").items():
            kept.append(each)
            pickled = pickle.dumps(reduce_tensor(each)) if name == BY_HAND else bytes(ForkingPickler.dumps(each))
            sent.append((n, name, uuid(n), pickled))
    torch.cuda.synchronize()
    sys.stdout.buffer.write(pickle.dumps(sent))
    sys.stdout.buffer.flush()
    os.close(1)
    sys.stdin.read()  # Until they have been looked at.


def receive():
    warned = start()
    import torch

    visible = [uuid(n) for n in range(torch.cuda.device_count())]
    reports = []
    for n, name, home, pickled in pickle.loads(sys.stdin.buffer.read()):
        read = by_hand if name == BY_HAND else pickle.loads
        reports.append(look(lambda read=read, pickled=pickled: read(pickled), n, name, home, visible))
    print(json.dumps({"tensors": reports, "warned": warned}))


def by_pickle(sender, receiver):
    """Return what the receiver saw."""
    command, streams = [sys.executable, __file__], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    source = subprocess.Popen([*command, "send"], env=sender, **streams)
    target = subprocess.Popen([*command, "receive"], env=receiver, **streams)  # Meanwhile it starts.
    found, _ = target.communicate(source.stdout.read())
    source.communicate()
    return json.loads(found)


def get_all(queue, answers, done):
    """Look at what comes from a queue, in a child that was spawned."""
    warned = start()
    import torch

    visible = [uuid(n) for n in range(torch.cuda.device_count())]
    reports = []
    while (sent := queue.get()) is not None:
        reports.append(look(queue.get, *sent, visible))
    answers.put({"tensors": reports, "warned": warned})
    done.wait()


def put_all():
    """Send by a queue to a child with the variables that are read from standard input."""
    start()
    import torch

    spawn = torch.multiprocessing.get_context("spawn")
    queue, answers, done = spawn.Queue(), spawn.Queue(), spawn.Event()
    kept = [(n, each) for n in range(torch.cuda.device_count()) for each in made(n, f"cuda:{n}").items()]
    torch.cuda.synchronize()
    child = spawn.Process(target=get_all, args=(queue, answers, done), daemon=True)
    os.environ.update(json.load(sys.stdin))
    child.start()
    for n, (name, each) in kept:
        if name != BY_HAND:
            queue.put((n, name, uuid(n)))
            queue.put(each)
    queue.put(None)
    print(json.dumps(answers.get(timeout=120)))
    done.set()
    child.join()


def by_queue(sender, receiver):
    """Return what the receiver saw."""
    command = [sys.executable, __file__, "put_all"]
    done = subprocess.run(
        command, env=sender, input=json.dumps(receiver), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def share(case):
    (sender, receiver), setting, side, way = case
    of_sender, of_receiver = SIDES[side]
    settings = SETTINGS[setting]
    return way(
        environment(sender, is_patched=of_sender, **settings), environment(receiver, is_patched=of_receiver, **settings)
    )


def wrong(report, before):
    """Yield what is wrong with the tensors that were sent with the patch on both sides.

    Args:
        report: Of these.
        before: The same without the patch.
    """
    for found, unpatched in zip(report["tensors"], before["tensors"], strict=True):
        is_repaired = all(found.get(what) is True for what in ("is_home", "is_right", "adds"))
        is_as_before = found == unpatched
        if found["name"] == BY_HAND or not found["is_visible"]:
            is_well = is_as_before
        elif "error" in unpatched and "invalid device ordinal" not in unpatched["error"]:
            is_well = is_repaired or is_as_before  # This machine cannot open such memory at all.
        else:
            is_well = is_repaired and found.get("share", True)
        if not is_well:
            yield {"found": found, "unpatched": unpatched}
    unseen = {found["sent_from"] for found in report["tensors"] if not found["is_visible"]}
    if len(report["warned"]) != len(unseen):
        yield {"unseen": len(unseen), "warned": report["warned"]}


def main():
    places = [(order, "") for order in ORDERS] + [(order, ", expandable segments") for order in ORDERS[:2]]
    cases = [(*place, side, way) for place in places for way in (by_pickle, by_queue) for side in SIDES]
    with ThreadPoolExecutor(6) as pool:
        reports = dict(zip(cases, pool.map(share, cases), strict=True))
    problems = {}
    for case, report in reports.items():
        (sender, receiver), setting, side, way = case
        before = reports[((sender, receiver), setting, "neither", way)]
        found = list(wrong(report, before)) if side == "both" else report != before and [report]
        if found:
            problems[f"{sender} to {receiver}{setting}, {way.__name__}, {side}"] = found
    shown = {
        f"{sender} to {receiver}{setting}, {way.__name__}, {side}": report
        for ((sender, receiver), setting, side, way), report in reports.items()
        if side in {"neither", "both"}
    }
    print(json.dumps({"reports": shown, "wrong": problems}, indent=1))
    sys.exit(int(bool(problems)))


if __name__ == "__main__":
    {"send": send, "receive": receive, "put_all": put_all}.get(sys.argv[-1], main)()
