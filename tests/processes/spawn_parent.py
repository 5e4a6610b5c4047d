"""The beginning of a script whose main part starts children; see ``test_spawn.py``."""

import json
import multiprocessing
import os  # noqa: F401 - for the main part
import sys


def tell(connection):
    package = sys.modules.get("nrl_patches")
    from standin.core import count

    told = {"count": count(), "activated_by": getattr(package, "activated_by", None)}
    if package:
        status = package.status()["standin.count"]
        told |= {"state": status.state, "reason": status.reason}
    connection.send(told)


def child(method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(theirs,))
    process.start()
    theirs.close()
    print(json.dumps(ours.recv()), flush=True)
    process.join()
    assert process.exitcode == 0
