"""What each process of an engine is asked: is the defect there, and what does it say about it?"""

import json
import os
import subprocess
import sys

PATCH = "vllm.dummy_load_constants"


def observe(_worker=None):
    """Run the probe in this process: as the process is, and with the patch undone."""
    imported = "nrl_patches" in sys.modules
    if not imported:
        os.environ["NRL_PATCHES"] = "0"  # It must not be the question that patches this process.
    import nrl_patches
    from nrl_patches.engine.activation import default_activation

    patch = default_activation().registry.patches[PATCH]
    seen = {"pid": os.getpid(), "parent": os.getppid(), "imported": imported, "present": patch.observe().present}
    with nrl_patches.undo(PATCH):
        return seen | {"present when undone": patch.observe().present}


def add_told(parts):
    """Add to each process of each part what the command, from outside, finds out about it."""
    pids = sorted({process["pid"] for part in parts.values() for process in part})
    command = [sys.executable, "-m", "nrl_patches", "status", "--json", *(f"--pid={pid}" for pid in pids)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = {process["pid"]: process for process in json.loads(done.stdout)}
    return {name: [process | found[process["pid"]] for process in part] for name, part in parts.items()}


class Extension:
    """Gives workers a method of that name, which a server can be asked to call."""

    def observe(self):
        return observe()
