"""Starts the scripts of this folder, and judges what they report of a process."""

from patches.vllm.environment import run
from processes.vllm.observed import PATCH
from standins import ROOT

HERE = ROOT / "tests" / "processes" / "vllm"
BROKEN = HERE / "broken"
UNCOVERED = HERE / "uncovered"
ACME = ROOT / "tests" / "contributed" / "acme"
"""What a distribution of another party looks like, installed: it has a patch of vLLM."""

_SECONDS = 400
"""A start takes 20 s on an idle machine, and several times that between other tests."""

_SMALL = {
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # Functions are sent to workers.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def start(script, *args, overlay=None, **environ):
    """Run a script on vLLM's CPU build; nothing of it outlives the call."""
    arguments = (_SECONDS, script, *args)
    return run(
        "0.30.0",
        HERE / "supervised.py",
        *arguments,
        overlay=overlay,
        timeout=_SECONDS + 30,
        fresh=True,
        **_SMALL,
        **environ,
    )


def check_patched(process, path):
    """Hold what a process says, and what its record says, against the path that is to have patched it."""
    assert process["present"] is False, process
    assert process["present when undone"] is True, process
    check_record(process, path, "applied")


def check_contributed(process):
    """Hold the record of a process against the patch of another party."""
    (record,) = process["records"]
    states = {status["id"]: status["state"] for status in record["statuses"]}
    assert states["acme_patches/vllm.harmless"] == "applied"


def check_record(process, path, state):
    (record,) = process["records"]
    states = {status["id"]: status["state"] for status in record["statuses"]}
    assert (record["activated_by"], states[PATCH]) == (path, state), process
