"""Tensors sent between processes that list two GPUs in different orders; needs two GPUs, and is no part of a test run.

    python cuda_ipc.py

Prints, as JSON, what became of a tensor on each GPU of the sender: its index at the receiver, whether that is the GPU
on which its memory is, and whether its values are right. Exits with 1 while `torch.cuda_ipc_device_index` is there: a
tensor is on the wrong GPU, or cannot be received, although the receiver sees the right one.
"""

import json
import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

ORDERS = (("0,1", "0,1"), ("0,1", "1,0"), ("0,1", "1"), ("0", "1"))
"""The devices that the sender and the receiver see."""


def uuid(index):
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)


def content(index):
    import torch

    return torch.arange(1024.0).view(32, 32) + index


def send():
    import torch
    import torch.multiprocessing  # Teaches the pickler tensors.

    tensors = [content(n).to(f"cuda:{n}") for n in range(torch.cuda.device_count())]
    torch.cuda.synchronize()
    sent = [(uuid(n), bytes(ForkingPickler.dumps(tensor))) for n, tensor in enumerate(tensors)]
    sys.stdout.buffer.write(pickle.dumps(sent))
    sys.stdout.buffer.flush()
    os.close(1)
    sys.stdin.read()  # Until they have been looked at.


def receive():
    import torch

    visible = [uuid(n) for n in range(torch.cuda.device_count())]
    report = []
    for n, (home, pickled) in enumerate(pickle.loads(sys.stdin.buffer.read())):
        found = {"sent_from": n, "is_visible": home in visible}
        try:
            tensor = pickle.loads(pickled)
            found |= {"index": tensor.device.index, "is_home": uuid(tensor.device.index) == home}
            found["is_right"] = torch.equal(tensor.cpu(), content(n))
        except RuntimeError as error:
            found["error"] = str(error).partition("\n")[0]
        report.append(found)
    print(json.dumps(report))


def share(sender, receiver):
    """Return what the receiver saw."""
    command, streams = [sys.executable, __file__], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    source = subprocess.Popen([*command, "send"], env=os.environ | {"CUDA_VISIBLE_DEVICES": sender}, **streams)
    sent = source.stdout.read()
    seen = os.environ | {"CUDA_VISIBLE_DEVICES": receiver}
    told = subprocess.run([*command, "receive"], env=seen, input=sent, stdout=subprocess.PIPE, check=True).stdout
    source.communicate()
    return json.loads(told)


def main():
    reports = {f"{sender} to {receiver}": share(sender, receiver) for sender, receiver in ORDERS}
    print(json.dumps(reports, indent=1))
    seen = [found for report in reports.values() for found in report if found["is_visible"]]
    sys.exit(int(not all(found.get("is_home") for found in seen)))


if __name__ == "__main__":
    {"send": send, "receive": receive}.get(sys.argv[-1], main)()
