"""Tensors sent between processes that list two GPUs in different orders; needs two GPUs, and is no part of a test run.

    python cuda_ipc.py

Sends tensors of each kind on each GPU of the sender by a pickle and by a queue of `torch.multiprocessing`, with
`torch.cuda_ipc_device_index` on neither side, on either and on both. Prints, as JSON, what became of them without the
patch and with it on both sides: the index at the receiver, whether that is the GPU on which the memory is, whether the
tensor is what was sent, and whether it can be added to one on that GPU. Exits with 0 if, with the patch on both sides,
that is so of each tensor whose GPU the receiver sees, and all else is as without the patch; `wrong` names the rest. The
patch is applied in any torch. What ends a case is its report, ``error``: that is wrong, unless it is a CUDA error and
the same without the patch. It takes some minutes.
"""

import gc
import json
import logging
import os
import pickle
import queue as queues
import re
import subprocess
import sys
import tempfile
import time
import traceback
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

PATIENCE = 120
"""How many seconds a process waits for another that is alive."""


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


def brief(error):
    """Return the first line of an error, with its type unless that is one of CUDA."""
    line = str(error).partition("\n")[0]
    return line if isinstance(error, RuntimeError) else f"{type(error).__name__}: {line}"


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
    except Exception as error:  # noqa: BLE001 - also what torch asserts
        report["error"] = brief(error)
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


def ended(process, errors):
    """Write what a process wrote of its errors to those of this one, and raise if it failed."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").splitlines()
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    if process.returncode:
        raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Empty)\b", line)]
        raise ChildProcessError(f"{process.args[-1]}: {raised[-1] if raised else f'exit {process.returncode}'}")


def by_pickle(sender, receiver):
    """Return what the receiver saw."""
    command, streams = [sys.executable, __file__], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile() as of_source, tempfile.TemporaryFile() as of_target:
        source = subprocess.Popen([*command, "send"], env=sender, stderr=of_source, **streams)
        # Before the tensors are read, so that both processes start at once.
        target = subprocess.Popen([*command, "receive"], env=receiver, stderr=of_target, **streams)
        try:
            pickled = source.stdout.read()
            if not pickled:
                source.wait(PATIENCE)
                ended(source, of_source)
            found, _ = target.communicate(pickled, timeout=PATIENCE)
            source.communicate(timeout=PATIENCE)
            ended(target, of_target)
            ended(source, of_source)
        finally:
            for each in (source, target):
                each.kill()
                each.wait()
    return json.loads(found)


def get_all(queue, answers, done):
    """Look at what comes from a queue, in a child that was spawned."""
    try:
        warned = start()
        import torch

        visible = [uuid(n) for n in range(torch.cuda.device_count())]
        reports = []
        while (sent := queue.get(timeout=PATIENCE)) is not None:
            reports.append(look(queue.get, *sent, visible))
        answers.put({"tensors": reports, "warned": warned})
    except Exception as error:  # noqa: BLE001 - the sender raises it
        traceback.print_exc()
        answers.put({"error": brief(error)})
    done.wait(PATIENCE)


def answer(child, answers, unsent):
    """Return what a child answers, or raise soon after it has ended or something could not be sent to it."""
    until = time.monotonic() + PATIENCE
    while not unsent and time.monotonic() < until:
        is_alive = child.is_alive()  # Before the look: what ended may have answered.
        try:
            found = answers.get(timeout=1)
        except queues.Empty:
            if not is_alive:
                raise ChildProcessError(f"the receiver ended with {child.exitcode}") from None
        else:
            if "error" in found:
                raise ChildProcessError(f"the receiver: {found['error']}")
            return found
    raise ChildProcessError(f"cannot be sent: {unsent[0]}" if unsent else "the receiver does not answer")


def put_all():
    """Send by a queue to a child with the variables that are read from standard input."""
    start()
    import torch

    spawn = torch.multiprocessing.get_context("spawn")
    queue, answers, done = spawn.Queue(), spawn.Queue(), spawn.Event()
    unsent = []
    queue._on_queue_feeder_error = lambda error, _: unsent.append(brief(error))  # Else it is dropped.
    homes = [uuid(n) for n in range(torch.cuda.device_count())]
    kept = [(n, each) for n in range(len(homes)) for each in made(n, f"cuda:{n}").items()]
    torch.cuda.synchronize()
    child = spawn.Process(target=get_all, args=(queue, answers, done), daemon=True)
    own = dict(os.environ)
    os.environ.update(json.load(sys.stdin))
    child.start()
    os.environ.update(own)  # torch may count devices by these variables again.
    try:
        for n, (name, each) in kept:
            if name != BY_HAND:
                queue.put((n, name, homes[n]))
                queue.put(each)
        queue.put(None)
        print(json.dumps(answer(child, answers, unsent)))
        done.set()
        child.join(10)
    finally:
        queue.cancel_join_thread()
        child.kill()


def by_queue(sender, receiver):
    """Return what the receiver saw."""
    command, pipe = [sys.executable, __file__, "put_all"], subprocess.PIPE
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            command,
            env=sender,
            input=json.dumps(receiver),
            stdout=pipe,
            stderr=errors,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        ended(done, errors)
    return json.loads(done.stdout)


def share(case):
    (sender, receiver), setting, side, way = case
    of_sender, of_receiver = SIDES[side]
    settings = SETTINGS[setting]
    variables = (
        environment(sender, is_patched=of_sender, **settings),
        environment(receiver, is_patched=of_receiver, **settings),
    )
    try:
        return way(*variables)
    except Exception as error:  # noqa: BLE001 - the other cases go on
        return {"error": f"{type(error).__name__}: {error}"}


def wrong(report, before):
    """Yield what is wrong with the tensors that were sent with the patch on both sides.

    Args:
        report: Of these.
        before: The same without the patch.
    """
    if "error" in report:
        if report != before or "CUDA error" not in report["error"]:
            yield {"found": report, "unpatched": before}
        return
    befores = before.get("tensors") or [before] * len(report["tensors"])  # Of a case that ended, nothing is known.
    for found, unpatched in zip(report["tensors"], befores, strict=True):
        is_repaired = all(found.get(what) is True for what in ("is_home", "is_right", "adds"))
        is_as_before = found == unpatched
        if found["name"] == BY_HAND or not found["is_visible"]:
            is_well = is_as_before or unpatched is before
        elif "error" in unpatched and unpatched is not before and "invalid device" not in unpatched["error"].lower():
            is_well = is_repaired or is_as_before  # This machine cannot open such memory at all.
        else:
            is_well = is_repaired and found.get("share", True)
        if not is_well:
            yield {"found": found, "unpatched": unpatched}
    unseen = {found["sent_from"] for found in report["tensors"] if not found["is_visible"]}
    if len(report["warned"]) != len(unseen):
        yield {"unseen": len(unseen), "warned": report["warned"]}


def cost():
    """Print how many microseconds it takes to pickle a tensor, the fastest of some rounds."""
    start()
    import torch

    rounds = []
    for _ in range(6):
        tensors = [torch.ones(16, device="cuda") for _ in range(200)]
        begin = time.perf_counter()
        for each in tensors:
            ForkingPickler.dumps(each)
        rounds.append((time.perf_counter() - begin) / len(tensors) * 1e6)
    print(round(min(rounds), 1))


def summary(report):
    """Return the names of the tensors that have the same become of them."""
    if "error" in report:
        return report
    groups = {}
    for found in report["tensors"]:
        outcome = found.get("error") or ", ".join(
            f"{key} {value}" for key, value in found.items() if key in {"index", "is_home", "is_right", "adds"}
        )
        groups.setdefault(f"cuda:{found['sent_from']}, visible {found['is_visible']}: {outcome}", []).append(
            found["name"]
        )
    return groups | ({"warned": report["warned"]} if report["warned"] else {})


def main():
    places = [(order, "") for order in ORDERS] + [(order, ", expandable segments") for order in ORDERS[:2]]
    cases = [(*place, side, way) for place in places for way in (by_pickle, by_queue) for side in SIDES]
    with ThreadPoolExecutor(6) as pool:
        reports = dict(zip(cases, pool.map(share, cases), strict=True))
    problems, shown = {}, {}
    for case, report in reports.items():
        (sender, receiver), setting, side, way = case
        name = f"{sender} to {receiver}{setting}, {way.__name__}, {side}"
        before = reports[((sender, receiver), setting, "neither", way)]
        is_same = report == before and "CUDA error" in report.get("error", "CUDA error")
        found = list(wrong(report, before)) if side == "both" else not is_same and [report]
        if found:
            problems[name] = found
        if side in {"neither", "both"}:
            shown[name] = summary(report)
    command = [sys.executable, __file__, "cost"]
    microseconds = {
        side: float(subprocess.check_output(command, env=environment("0,1", is_patched=side == "both")))
        for side in ("neither", "both")
    }
    print(json.dumps({"reports": shown, "microseconds": microseconds, "wrong": problems}, indent=1))
    sys.exit(int(bool(problems)))


if __name__ == "__main__":
    {"send": send, "receive": receive, "put_all": put_all, "cost": cost}.get(sys.argv[-1], main)()
