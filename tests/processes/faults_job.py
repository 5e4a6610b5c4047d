"""The beginning of a script whose main part has children to talk to; see ``test_faults.py``."""

import json  # noqa: F401 - for the main part
import multiprocessing
import os
import sys


def tell(connection):
    package = sys.modules.get("nrl_patches")
    from standin.core import count

    told = {"count": count(), "pid": os.getpid(), "version": getattr(package, "__version__", None)}
    connection.send(told)
    connection.recv()


class Child:
    def __init__(self, **kwargs):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=tell, args=(theirs,), **kwargs)
        self.process.start()
        theirs.close()

    def told(self):
        return self.connection.recv()

    def end(self):
        self.connection.send(None)
        self.process.join()
        assert self.process.exitcode == 0
