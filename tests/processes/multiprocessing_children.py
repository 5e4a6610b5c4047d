"""Children of each start method report the defect and the status that they see. None of their code names our package.

    python multiprocessing_children.py PATCH

Prints one JSON object per way to start a child. Only the parent imports nrl_patches, after the children's code.
"""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor


def seen(patch_id):
    package = sys.modules.get("nrl_patches")
    if package is None:
        return {"activated_by": None}
    patch = package._activation.registry.patches[patch_id]
    present = patch.observe().present
    state = str(package.status()[patch_id].state)
    return {"present": present, "state": state, "activated_by": package.activated_by, "pid": os.getpid()}


def send(connection, patch_id):
    connection.send(seen(patch_id))


def child(method, patch_id):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(theirs, patch_id))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def pool(patch_id):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(seen, patch_id).result()


def main():
    import nrl_patches  # noqa: F401

    found = {method: child(method, sys.argv[1]) for method in ("fork", "spawn", "forkserver")}
    found["pool"] = pool(sys.argv[1])
    print(json.dumps({"parent": os.getpid(), **found}))


if __name__ == "__main__":
    main()
