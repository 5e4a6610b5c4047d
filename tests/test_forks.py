"""The forks in which scripts run on upstream releases: each is to find what a fresh interpreter would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
from standins import ROOT


@pytest.fixture
def start():
    """Start a server that has imported little; all are ended after the test."""
    started = []

    def start(path=(), modules=("json.tool",)):
        started.append(forks.Server([*map(str, path), str(ROOT)], dict(os.environ), modules))
        return started[-1]

    yield start
    for server in started:
        server.close()


def run(server, script, *args, timeout=60, path=(), **environ):
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))} | environ
    return server.run([str(script), *args], environ, timeout)


STATE = """
import json, multiprocessing, os, sys
main = sys.modules["__main__"]
print(json.dumps({
    "name": [__name__, __file__, main.__dict__ is globals(), main.__spec__],
    "arguments": sys.argv,
    "path": sys.path,
    "environ": dict(os.environ),
    "folder": os.getcwd(),
    "streams": [sys.stdin.read(), sys.stdout.encoding, sys.stderr.encoding],
    "ours": sorted(name for name in sys.modules if name.startswith("nrl_patches")),
}))
print("said", file=sys.stderr)
"""


def test_a_script_finds_what_it_finds_in_a_fresh_interpreter(start, tmp_path, monkeypatch):
    script = tmp_path / "scripts" / "state.py"
    script.parent.mkdir()
    script.write_text(STATE)
    monkeypatch.chdir(tmp_path)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OWN": "1"}
    command = [str(script), "an argument"]
    fresh = subprocess.run(
        [sys.executable, *command], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    server = start()
    for _ in range(2):
        fork = server.run(command, environ, 60)
        assert json.loads(fork.stdout) == json.loads(fresh.stdout)
        assert (fork.returncode, fork.stderr) == (0, "said\n")


def test_what_one_script_does_no_other_sees(start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, os; print('wave' in sys.modules, 'OWN' in os.environ); import wave")
    server = start()
    for environ in ({"OWN": "1"}, {}):
        assert run(server, script, **environ).stdout == f"False {bool(environ)}\n"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('no')", 1, "no\n"),
        ("raise KeyError('key')", 1, "KeyError: 'key'\n"),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("a syntax error", 1, "SyntaxError: invalid syntax\n"),
        ("atexit.register(print, 'at exit', file=sys.stderr)", 0, "at exit\n"),
        ("threading.Timer(0.2, print, ['thread'], {'file': sys.stderr}).start()", 0, "thread\n"),
    ],
)
def test_how_a_script_ends_is_how_its_process_ends(start, tmp_path, ending, code, said):
    script = tmp_path / "script.py"
    script.write_text(f"import atexit, os, sys, threading\n{ending}\n")
    done = run(start(), script)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.endswith(said)
    assert bool(done.stderr) is bool(said)


def test_what_takes_too_long_is_killed_with_its_children_and_the_next_script_runs(start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\nprint(os.getpid(), flush=True)\n"
        "print(os.fork() or os.getpid(), flush=True)\ntime.sleep(float(sys.argv[1]))"
    )
    server = start()
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        run(server, script, "600", timeout=1)
    pids = {int(pid) for pid in raised.value.output.split()}
    assert len(pids) == 2
    assert not left_of(pids)
    assert run(server, script, "0").returncode == 0


def left_of(pids):
    """Return which processes are still there after a while."""
    deadline = time.monotonic() + 20
    while (left := {pid for pid in pids if alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


HOLDER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import forks
server = forks.Server([], dict(os.environ), ())
print(server._process.pid, flush=True)
server.run(sys.argv[2:], os.environ | {"PYTHONPATH": ""}, 600)
"""


def test_nothing_outlives_a_test_run_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    file = tmp_path / "pid"
    script.write_text(f"import os, time\nopen({str(file)!r}, 'w').write(f'{{os.getpid()}} ')\ntime.sleep(600)")
    command = [sys.executable, "-c", HOLDER, str(ROOT / "tests"), str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        pids = {int(holder.stdout.readline())}
        while not (file.exists() and file.read_text().endswith(" ")):
            time.sleep(0.01)
        pids.add(int(file.read_text()))
        assert all(map(alive, pids))
        holder.send_signal(signal.SIGKILL)
    assert not left_of(pids)


def test_a_variable_that_is_read_at_the_start_takes_a_fresh_interpreter(start):
    with pytest.raises(AssertionError, match=r"fresh interpreter.*TORCH_LOGS"):
        run(start(), Path("script.py"), TORCH_LOGS="all")


def test_a_folder_with_another_version_of_what_was_imported_gets_a_server_that_has_imported_that(
    sandbox, monkeypatch, tmp_path
):
    here, there = (tmp_path / name for name in ("here", "there"))
    for folder, version in ((here, "1.0"), (there, "2.0")):
        folder.mkdir()
        sandbox.folder = folder
        sandbox.distribution(version, name="depended", core=f"VERSION = {version!r}")
    script = tmp_path / "script.py"
    script.write_text("from depended.core import VERSION; print(VERSION)")
    monkeypatch.setattr(forks, "_SERVERS", {})
    monkeypatch.setattr(forks.Server.__init__, "__defaults__", (("depended.core",),))
    other = tmp_path / "other"
    other.mkdir()
    environ = os.environ | {"PYTHONPATH": str(here)}
    forks._SERVERS[()] = forks.Server([str(here)], environ)
    try:
        for path, version in (([other], "1.0"), ([here], "1.0"), ([there], "2.0"), ([other, there], "2.0")):
            done = forks.run([str(script)], environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}, 60)
            assert done.stdout == f"{version}\n", done
        assert list(forks._SERVERS) == [(), (str(there),)]
    finally:
        forks.close()
