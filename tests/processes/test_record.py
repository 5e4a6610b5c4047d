"""The record that a process keeps of its patches, and ``nrl-patches status --pid``, which asks for it."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import pytest
from package_copy import Copy

from nrl_patches import __version__
from nrl_patches.hosts.door import RECORD
from nrl_patches.processes.inspection import Running, _content_of, _has_mapped, descendants, look_into

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory on this system")


@contextlib.contextmanager
def job(copy, code, **environ):
    """Start a process that runs code, and yield it at each line that it prints; it ends when its stdin does."""
    code = f"import os, sys\n{textwrap.dedent(code)}\nprint('there', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=copy.environ(**environ),
        cwd=copy.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate(timeout=60)


def line(process):
    return process.stdout.readline().strip()


def told(pid):
    """Return the only record of a process."""
    found = look_into(pid)
    assert not found.problem, found
    (record,) = found.records
    return record


def state(pid):
    statuses = told(pid)["statuses"]
    return statuses[0]["state"] if statuses else "waiting"


def asked(copy, *args):
    return copy.run("nrl_patches", "status", *map(str, args))


def test_it_follows_every_change(copy):
    code = """
        import nrl_patches
        def step(): print("next", flush=True); sys.stdin.readline()
        step()
        import standin.core
        step()
        nrl_patches.undo()
        step()
        nrl_patches.apply()
        step()
    """
    with job(copy, code) as process:
        for expected in ("waiting", "applied", "disabled", "applied"):
            assert line(process) == "next"
            assert state(process.pid) == expected
            process.stdin.write("\n")
            process.stdin.flush()


def steps(process):
    """Run what a process does between its lines ``next``; yield its only record each time."""
    while line(process) == "next":
        yield told(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()


STEP = """
    import nrl_patches
    def step(): print("next", flush=True); sys.stdin.readline()
"""


def test_what_the_process_finds_out_when_it_looks(copy):
    code = """
        import standin.core
        ours = standin.core.count
        standin.core.count = lambda: 1
        step()
        assert nrl_patches.status()["standin.count"].state == "drifted"
        step()
        standin.core.count = ours
        assert nrl_patches.status()["standin.count"].state == "applied"
        step()
        standin.core.count = lambda: 1
        nrl_patches.status()
        standin.core.count = ours
        nrl_patches.undo()
        step()
    """
    with job(copy, textwrap.dedent(STEP) + textwrap.dedent(code)) as process:
        found = [(record["statuses"][0]["state"], record["statuses"][0]["reason"]) for record in steps(process)]
    assert [state for state, _ in found] == ["applied", "drifted", "applied", "disabled"]
    assert found[1][1] == "standin.core:count was replaced since by __main__.<lambda>"


def test_what_has_not_been_decided_yet(copy):
    copy.patch("absent", affected="absent<2", target="absent.core:count", opt_out="NRL_DISABLE_ABSENT")
    with job(copy, textwrap.dedent(STEP) + "nrl_patches._activation\nstep()\nnrl_patches.status()\nstep()") as process:
        before, after = ({s["id"]: (s["state"], s["reason"]) for s in r["statuses"]} for r in steps(process))
    assert before == {
        "standin.absent": ("pending", "not decided yet: waits for the import of absent.core"),
        "standin.count": ("pending", "not decided yet: waits for the import of standin.core"),
    }
    assert after == {
        "standin.absent": ("not-installed", "absent is not installed"),
        "standin.count": ("pending", "standin 1.0 is in standin<2; waits for the import of standin.core"),
    }


def test_a_look_that_finds_nothing_new_writes_nothing(copy):
    copy.patch(fix="raise LookupError")
    code = """
        import os
        written = []
        write = os.pwrite
        os.pwrite = lambda *args: written.append(args) or write(*args)
        import nrl_patches, standin.core
        before = len(written)
        for _ in range(3):
            nrl_patches.status()
        print(before, len(written) - before)
    """
    done = copy.python("-c", textwrap.dedent(code))
    assert done.stdout == "2 0\n", done.stderr


def test_what_is_found_while_another_thread_changes_it(copy):
    # Of the two the change is the newer one.
    code = """
        import nrl_patches
        activation = nrl_patches._activation
        look = activation._status
        def slow(patch):
            found = look(patch)
            import standin.core
            return found
        activation._status = slow
        assert nrl_patches.status()["standin.count"].state == "pending"
    """
    with job(copy, code) as process:
        line(process)
        assert state(process.pid) == "applied"


def test_a_patch_file_that_cannot_be_loaded(copy):
    copy.write("nrl_patches/patches/standin/broken.py", "raise KeyError('mine')\n")
    with job(copy, "import nrl_patches; nrl_patches.status()") as process:
        line(process)
        found = {status["id"]: status for status in told(process.pid)["statuses"]}
        assert found["standin.broken"]["state"] == "failed"
        assert "broken.py: KeyError: 'mine'; next step: " in found["standin.broken"]["reason"]
        assert asked(copy, "--pid", process.pid).returncode == 1


def test_what_it_says(copy):
    with job(copy, "import nrl_patches, standin.core", NRL_PATCHES_STRICT="1") as process:
        line(process)
        record = told(process.pid)
        assert record.items() >= {
            "pid": process.pid, "version": __version__, "package": str(copy.folder / "nrl_patches"),
            "activated_by": "import", "strict": True, "notes": [],
        }.items()  # fmt: skip
        assert record["statuses"] == [
            {"id": "standin.count", "state": "applied", "reason": "standin 1.0 is in standin<2", "notes": []}
        ]
        done = asked(copy, "--pid", process.pid)
        assert done.returncode == 0, done.stderr
        assert (
            f"  nrl_patches {__version__} in {copy.folder}/nrl_patches, activated by import, strict\n"
            "  as of its last change, or of the last call of nrl_patches.status() there\n"
        ) in done.stdout
        assert "  applied       standin.count\n                standin 1.0 is in standin<2\n" in done.stdout
        (found,) = json.loads(asked(copy, "--json", "--pid", process.pid).stdout)
        assert (found["pid"], found["records"]) == (process.pid, [record])


def test_a_shorter_record_leaves_nothing_of_a_longer_one(copy):
    copy.patch(fix="raise LookupError('x' * 5000)")
    with job(copy, "import nrl_patches, standin.core, logging\nnrl_patches.undo('standin.count')") as process:
        line(process)
        assert state(process.pid) == "disabled"


@pytest.mark.parametrize("text", ['{"change": 2, "pid": 1, "statuses": [], "complete": 1}', '{"change": 2, "pi'])
def test_the_middle_of_a_change_is_not_told(copy, text):
    code = f"os.write(os.memfd_create({RECORD!r}), {text.encode()!r})"
    with job(copy, code) as process:
        line(process)
        assert look_into(process.pid).records == ()


WHOLE = '{"change": 1, "pid": 1, "activated_by": "x", "statuses": [%s], %s "complete": 1}'
STRANGE = {
    "a list": "[]",
    "nothing": "{}",
    "no activated_by": '{"change": 1, "pid": 1, "complete": 1, "statuses": []}',
    "notes": WHOLE % ("", '"notes": 5,'),
    "a note": WHOLE % ("", '"notes": [5],'),
    "failure": WHOLE % ("", '"failure": 5,'),
    "statuses": '{"change": 1, "pid": 1, "activated_by": "x", "complete": 1, "statuses": 5}',
    "a status": WHOLE % ("5", ""),
    "an empty status": WHOLE % ("{}", ""),
    "a state": WHOLE % ('{"id": "x", "state": [], "reason": "", "notes": []}', ""),
    "the notes of a status": WHOLE % ('{"id": "x", "state": "applied", "reason": "", "notes": 5}', ""),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_a_record_that_is_not_of_our_making(copy, text):
    code = f"fd = os.memfd_create({RECORD!r})\nopen(fd, 'w', closefd=False).write(sys.stdin.readline())"
    with job(copy, code) as process:
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        line(process)
        assert look_into(process.pid).records == ()
        # What both commands say is made of that.
        for command in (("status",), ("doctor", "--no-imports")) if text == STRANGE["deep"] else ():
            done = copy.run("nrl_patches", *command, "--pid", str(process.pid))
            assert (done.returncode, done.stderr) == (1, ""), done.stderr
            assert "no record: nrl_patches was not imported there" in done.stdout


def test_a_process_that_has_more_to_say_than_anybody_should_read(copy):
    code = f"""
        for _ in range(20):  # {"x" * 100_000}
            os.write(os.memfd_create({RECORD!r}), {(WHOLE % ("", "")).encode()!r})
    """
    with job(copy, code) as process:
        line(process)
        found = look_into(process.pid)
        assert (len(found.records), len(found.command) <= 4096) == (16, True)
    # Sparse: it costs that process nothing.
    code = f"os.ftruncate(os.memfd_create({RECORD!r}), 3 << 30)"
    with job(copy, code) as process:
        line(process)
        tracemalloc.start()
        found = look_into(process.pid)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()
        assert found.problem.startswith("its record is not read: it has 3221225472 bytes, where ")
        assert asked(copy, "--pid", process.pid).returncode == 1


def test_a_pipe_under_the_name_of_a_record_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert _content_of(tmp_path / "fifo") == b""


def test_what_is_mapped_is_found_across_the_parts_that_are_read(tmp_path):
    maps = tmp_path / "maps"
    needle = b"/libtorch_python."
    maps.write_bytes(b"x" * (2**20 - 5) + needle)
    assert _has_mapped(tmp_path, needle)
    maps.write_bytes(b"x" * (2**20 - 5) + needle[:-1])
    assert not _has_mapped(tmp_path, needle)


def test_what_is_in_a_record_beside_what_is_ours_is_not_told(copy):
    deep = '"x": ' + "[" * 500 + "]" * 500
    status = '{"id": "x", "state": "applied", "reason": "", "notes": [], %s}' % deep  # noqa: UP031 - braces
    with job(copy, f"os.write(os.memfd_create({RECORD!r}), {(WHOLE % (status, f'{deep},')).encode()!r})") as process:
        line(process)
        assert asked(copy, "--json", "--pid", process.pid).returncode == 0


@pytest.fixture
def hidden(monkeypatch):
    """Processes as /proc has them under hidepid=1: listed, and otherwise closed to other users."""
    original = Path.open

    def opened(self, *args, **kwargs):
        if self.name in {"cmdline", "status"}:
            raise PermissionError(1, "Operation not permitted")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.usefixtures("hidden")
def test_processes_that_the_system_hides():
    found = look_into(os.getpid())
    assert (found.command, found.problem) == ("?", "cannot be inspected: it belongs to another user")
    assert descendants(os.getpid()) == []


def test_what_a_process_says_is_no_command_for_the_terminal():
    shown = str(Running(1, "sh -c \x1b[2J"))
    assert shown == "process 1 (sh -c \\x1b[2J)"


FORK = """
    import nrl_patches
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        import standin.core
        os.write(writing, b"x")
        sys.stdin.read()
        os._exit(0)
    os.read(reading, 1)
    print(pid, flush=True)
"""


def test_a_forked_child_has_its_own(copy):
    with job(copy, FORK) as process:
        child = int(line(process))
        assert (state(process.pid), state(child)) == ("waiting", "applied")
        assert told(child)["pid"] == child
        assert descendants(process.pid) == [child]
        done = asked(copy, "--children", "--pid", process.pid)
        assert done.stdout.count("activated by import") == 2
        assert asked(copy, "--pid", process.pid).stdout.count("activated by") == 1


def test_a_forked_child_of_the_same_number(copy):
    # As in another namespace.
    with job(copy, f"os.getpid = lambda: 1\n{textwrap.dedent(FORK)}") as process:
        child = int(line(process))
        assert (state(process.pid), state(child)) == ("waiting", "applied")


def test_what_the_parent_does_after_a_fork_is_not_told_of_the_child(copy):
    code = FORK.replace("import standin.core", "").replace("print(pid", "import standin.core\n    print(pid")
    with job(copy, code) as process:
        child = int(line(process))
        assert (state(process.pid), state(child)) == ("applied", "waiting")


def test_a_fork_that_python_does_not_notice(copy):
    unnoticed = FORK.replace("os.fork()", "__import__('ctypes').CDLL(None).fork()")
    with job(copy, unnoticed) as process:
        child = int(line(process))
        assert (state(process.pid), state(child)) == ("waiting", "applied")
    with job(copy, unnoticed.replace("import standin.core", "")) as process:
        child = int(line(process))
        (note,) = told(child)["notes"]
        assert note == (
            f"this is the record of process {process.pid}: the process was forked from it without Python's knowledge"
        )


def test_a_program_that_closes_every_file(copy):
    # As daemons do. The number then belongs to a file of theirs, into which we must not write.
    code = f"""
        import nrl_patches
        fd = next(int(f) for f in os.listdir("/proc/self/fd") if {RECORD!r} in os.path.realpath(f"/proc/self/fd/{{f}}"))
        os.closerange(3, 100)
        stranger = os.open("precious", os.O_RDWR | os.O_CREAT)
        os.dup2(stranger, fd)
        os.write(fd, b"precious")
        print("closed", flush=True)
        sys.stdin.readline()
        import standin.core
        print(os.pread(fd, 100, 0), flush=True)
        if not os.fork():
            os.fstat(fd)
            os._exit(os.pread(fd, 100, 0) != b"precious")
        assert os.wait()[1] == 0
    """
    with job(copy, code) as process:
        assert line(process) == "closed"
        assert look_into(process.pid).problem.startswith("no record: nrl_patches was not imported there, or its file")
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "b'precious'"
        assert line(process) == "there"
        assert state(process.pid) == "applied"


@pytest.mark.parametrize("broken", [False, True])
def test_it_takes_the_place_of_no_standard_stream(copy, broken):
    if broken:
        copy.write("nrl_patches/errors.py", "raise KeyError('half an upgrade')")
    code = "os.close(2)\nimport standin, nrl_patches_hosts.vllm\nnrl_patches_hosts.vllm.plugin()"
    with job(copy, f"{code}\nprint(os.path.exists('/proc/self/fd/2'))") as process:
        assert line(process) == "False"
        assert line(process) == "there"
        assert len(told(process.pid)["statuses"]) == 1 - broken


def test_it_is_not_inherited_by_other_programs(copy):
    code = """
        import nrl_patches, subprocess
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        print(child.pid, flush=True)
        sys.stdin.readline()
        child.kill()
        child.wait()
    """
    with job(copy, code) as process:
        child = int(line(process))
        done = asked(copy, "--children", "--pid", process.pid)
        assert done.returncode == 0
        assert f"process {child} (sleep 60)\n  no record: nrl_patches was not imported there" in done.stdout
        assert asked(copy, "--pid", child).returncode == 1
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "there"


UNPATCHED = """
    import subprocess
    code = "import {imports}; print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=-1, stdout=-1, env={environ})
    child.stdout.readline()
    import nrl_patches
    print(child.pid, flush=True)
    sys.stdin.read()
    child.communicate()
"""


@pytest.mark.parametrize(
    ("imports", "environ", "problem", "code"),
    [
        ("torch", {}, "no record: torch is loaded, but nrl_patches was not imported there, or its file ", 1),
        ("torch", {"NRL_PATCHES": "0"}, "no record: NRL_PATCHES=0 in its environment", 0),
        ("json", {"AUTOWRAPT_BOOTSTRAP": "a, nrl_patches.startup"}, "no record: under `nrl-patches run`, and no ", 0),
        ("json", {}, "no record: nrl_patches was not imported there, or its file descriptors have been closed", 0),
    ],
)
def test_a_child_without_the_patches(copy, imports, environ, problem, code):
    # multiprocessing's resource tracker and Ray's agents are Python too, and have no use for them.
    with job(copy, UNPATCHED.format(imports=imports, environ={"HOME": "/", **environ})) as process:
        child = int(line(process))
        done = asked(copy, "--children", "--pid", process.pid)
        assert f"\n  {problem}" in done.stdout
        assert done.returncode == code
        assert asked(copy, "--pid", process.pid).returncode == 0
        assert asked(copy, "--pid", child).returncode == 1
        diagnosis = copy.run("nrl_patches", "doctor", "--children", "--pid", str(process.pid))
        assert (f"problem: process {child} (" in diagnosis.stdout) == (code == 1), diagnosis.stdout


@pytest.mark.parametrize("left", ["", "LEFT=1"])
def test_switched_off_where_a_process_has_overwritten_its_environment(copy, monkeypatch, left):
    # The beginning of it, by a title of its own.
    read = Path.read_bytes
    with job(copy, UNPATCHED.format(imports="torch", environ={}), NRL_PATCHES="0") as process:
        child = int(line(process))
        overwritten = Path("/proc", str(child), "environ")
        monkeypatch.setattr(Path, "read_bytes", lambda p: f"\0\0\0{left}\0".encode() if p == overwritten else read(p))
        assert look_into(child).problem == f"no record: NRL_PATCHES=0 in the environment of process {process.pid}"
        assert not look_into(child).unpatched


def test_switched_off(copy):
    with job(copy, "import nrl_patches", NRL_PATCHES="0") as process:
        line(process)
        assert look_into(process.pid).problem == "no record: NRL_PATCHES=0 in its environment"


def test_no_such_process(copy):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    done = asked(copy, "--pid", int(gone.stdout))
    assert done.returncode == 1
    assert "there is no such process" in done.stdout


def test_a_problem_of_a_process_fails_the_command(copy):
    copy.patch(guard="lambda original: 'is different'")
    with job(copy, "import nrl_patches, standin.core") as process:
        line(process)
        done = asked(copy, "--pid", process.pid)
        assert done.returncode == 1
        assert "  drifted       standin.count\n" in done.stdout


def test_a_target_that_another_thread_imports_while_the_record_is_made(copy):
    # A slow memfd_create stands for a switch of threads there.
    code = """
        import threading, time
        entered = threading.Event()
        make = os.memfd_create
        def slow(*args):
            if not entered.is_set():
                entered.set()
                time.sleep(1)
            return make(*args)
        os.memfd_create = slow
        def other():
            entered.wait()
            import standin.core
        thread = threading.Thread(target=other)
        thread.start()
        import nrl_patches
        thread.join()
    """
    with job(copy, code) as process:
        line(process)
        assert state(process.pid) == "applied"


def test_two_copies_in_one_process(copy, tmp_path):
    (tmp_path / "second").mkdir()
    other = Copy(tmp_path / "second")
    other.patch()
    code = f"""
        import nrl_patches
        for name in [name for name in sys.modules if name.partition(".")[0] == "nrl_patches"]:
            del sys.modules[name]
        sys.path.insert(0, {str(other.folder)!r})
        import nrl_patches
    """
    with job(copy, code) as process:
        line(process)
        packages = {record["package"] for record in look_into(process.pid).records}
        assert packages == {str(copy.folder / "nrl_patches"), str(other.folder / "nrl_patches")}


def test_an_import_that_fails_is_told_by_the_entry_point(copy):
    copy.write("nrl_patches/errors.py", "raise KeyError('half an upgrade')")
    code = "import logging, standin, nrl_patches_hosts.vllm as host\nhost.plugin()\nhost.plugin()"
    with job(copy, code) as process:
        line(process)
        record = told(process.pid)
        assert (record["activated_by"], record["statuses"]) == ("plugin", [])
        assert record["failure"].rstrip().endswith("KeyError: 'half an upgrade'")
        done = subprocess.run(
            [sys.executable, "-m", "nrl_patches", "status", "--pid", str(process.pid)],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 1
        assert "KeyError: 'half an upgrade'" in done.stdout


def test_a_forked_child_shares_the_failed_import(copy):
    copy.write("nrl_patches/errors.py", "raise KeyError('half an upgrade')")
    code = FORK.replace(
        "import nrl_patches\n", "import standin, nrl_patches_hosts.vllm\n    nrl_patches_hosts.vllm.plugin()\n"
    )
    with job(copy, code.replace("import standin.core", "")) as process:
        record = told(int(line(process)))
        assert record["failure"]
        assert "notes" not in record


def test_a_spawned_child_tells_of_its_failed_import(copy):
    code = """
import multiprocessing, os, sys

def child(connection):
    import standin
    connection.recv()

if __name__ == "__main__":
    import nrl_patches
    nrl_patches.status()
    open("nrl_patches/errors.py", "w").write("raise KeyError('half an upgrade')")
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    print(process.pid, flush=True)
    sys.stdin.readline()
    ours.send(None)
    process.join()
"""
    script = copy.write("job.py", code)
    with job(copy, f"import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')") as process:
        child = int(line(process))
        deadline = time.monotonic() + 60
        while not all("failure" in r for r in look_into(child).records or [{}]) and time.monotonic() < deadline:
            time.sleep(0.05)
        record = told(child)
        assert record["activated_by"] == "multiprocessing"
        assert record["failure"].rstrip().endswith("KeyError: 'half an upgrade'")
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "there"


@pytest.mark.parametrize("entry", ["vllm.plugin()", "ray.worker()", "startup.startup(None)"])
def test_an_error_that_says_what_to_do_is_logged_as_it_is(copy, entry):
    code = f"from nrl_patches_hosts import ray, startup, vllm\ntry:\n    {entry}\nexcept Exception:\n    pass"
    done = copy.python("-c", code, NRL_PATCHES_STRICT="1", NRL_PATCHES_DISABLE="typo")
    (line,) = done.stderr.splitlines()
    assert line.startswith("NRL_PATCHES_DISABLE: expected ")
    assert line.count("next step: ") == 1
    assert "without any patch" not in line


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_children_needs_a_process(copy, command):
    done = copy.run("nrl_patches", command, "--children")
    assert done.returncode == 2
    assert "--children needs --pid" in done.stderr
