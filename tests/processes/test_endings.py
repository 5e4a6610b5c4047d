"""However what we started ends, by a signal too, nothing that it has started stays behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANG = """
import json, os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
with open({file!r} + ".part", "w") as file:
    json.dump([os.getpid(), child.pid], file)
os.rename({file!r} + ".part", {file!r})
time.sleep(600)
"""


@pytest.fixture
def hanging(copy):
    """A copy whose probe starts a process and hangs, and who both are."""
    copy.started = copy.folder / "started"
    copy.patch(probe=HANG.format(file=str(copy.started)))
    copy.write("framework.py", HANG.format(file=str(copy.started)))
    return copy


@pytest.fixture
def _interruptible():
    # A shell without job control lets what it starts in the background ignore SIGINT, and all that comes of it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def has_ended(pid):
    try:  # Nobody but init may be there to bury it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def start(copy, *args):
    process = subprocess.Popen(
        [sys.executable, "-m", *args],
        env=copy.environ(), cwd=copy.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: copy.started.exists() or process.poll() is not None)
    return process


def check_nobody_is_left(copy):
    for pid in json.loads(copy.started.read_text()):
        wait_for(lambda pid=pid: has_ended(pid))


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize(
    ("args", "sent", "code"),
    [
        (("tripwires",), signal.SIGINT, 130),
        (("tripwires",), signal.SIGTERM, -signal.SIGTERM),
        (("tripwires",), signal.SIGKILL, -signal.SIGKILL),
        (("doctor", "--no-imports", "--import", "framework"), signal.SIGINT, 130),
        (("doctor", "--no-imports", "--import", "framework"), signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_the_command(hanging, args, sent, code):
    process = start(hanging, "nrl_patches", *args)
    process.send_signal(sent)
    out, said = process.communicate(timeout=60)
    assert process.returncode == code, (out, said)
    assert "Traceback" not in said
    check_nobody_is_left(hanging)


BY_SIGNAL = "signal.signal(signal.SIGALRM, lambda *_: pytest.fail('took too long'))"
BY_THREAD = "signal.signal(signal.SIGALRM, lambda *_: os._exit(1))"


@pytest.mark.parametrize("way", [BY_SIGNAL, BY_THREAD], ids=["as a failure", "by the end of the process"])
def test_a_test_session_that_limits_the_time_of_a_test(hanging, way):
    # The two ways of pytest-timeout, in a session or in a worker of pytest-xdist; here as soon as the probe hangs.
    conftest = f"""
import os, signal, threading, time
import pytest
def watch():
    while not os.path.exists({str(hanging.started)!r}):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGALRM)
{way}
threading.Thread(target=watch, daemon=True).start()
"""
    done = hanging.pytest("--nrl-tripwires", conftest=conftest)
    assert done.returncode == 1, done.stdout
    check_nobody_is_left(hanging)


def test_one_who_starts_us_and_is_gone_before_we_have_looked(copy):
    # The end of the pipe is then seen, and not waited for.
    code = """
import os, sys, tempfile
from nrl_patches.processes import launch
launch._BOOTSTRAP = ("slow.py", *launch._BOOTSTRAP)
with tempfile.TemporaryFile() as output:
    with launch.start_code("open('reached', 'w')", [], streams=(output, output)) as process:
        os._exit(0)
"""
    copy.write("nrl_patches/processes/slow.py", "import os, time\nopen('slow', 'w').close()\ntime.sleep(0.5)\n")
    done = copy.python("-c", code)
    assert done.returncode == 0, done.stderr
    wait_for((copy.folder / "slow").exists)
    time.sleep(1)
    assert not (copy.folder / "reached").exists()
