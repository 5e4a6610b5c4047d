"""What can go wrong around a child. In none of it anything is written to disk, and no import fails because of us."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest
from package_copy import Copy
from standins import ADD_ONE

from nrl_patches import __version__
from nrl_patches.processes.inspection import look_into

AUDIT = """
import os, sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.")

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[0] != os.devnull and args[2] & WRITING:
        os.write(2, f"WRITTEN open {args}\\n".encode())
    elif event.startswith(CHANGES):
        os.write(2, f"WRITTEN {event} {args}\\n".encode())

sys.addaudithook(watch)
"""
"""Executed by every interpreter of a job: tells of all that is opened for writing, made, moved or removed."""

JOB = Path(__file__).with_name("faults_job.py").read_text(encoding="utf-8") + '\nif __name__ == "__main__":\n'


@pytest.fixture
def audited(copy):
    copy.write("sitecustomize.py", AUDIT)
    return copy


def job(copy, main, *, before=(), **environ):
    """Run a main part that has ``Child``; return what it printed as JSON lines, and the process."""
    script = copy.write("job.py", JOB + textwrap.indent(main.strip(), "    "))
    done = subprocess.run(
        [*before, sys.executable, script],
        env=copy.environ(**environ),
        cwd=copy.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WRITTEN" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done


ONE = """
import nrl_patches
child = Child()
print(json.dumps(child.told()))
child.end()
"""


def test_the_audit_sees_what_is_written(audited):
    with pytest.raises(AssertionError, match="WRITTEN open"):
        job(audited, "open('precious', 'w').close()")
    with pytest.raises(AssertionError, match=r"WRITTEN os\.mkdir"):
        job(audited, "os.mkdir('precious')")


DOOMED = """
import os, signal
if os.environ.get("DOOMED"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["while the package is imported", "while a fix is installed"])
def test_a_child_killed_in_the_middle_of_activation(audited, moment):
    audited.patch(**({"fix": DOOMED + ADD_ONE} if moment.endswith("installed") else {"more": DOOMED}))
    main = """
import nrl_patches
nrl_patches.status()
os.environ["DOOMED"] = "1"
doomed = Child()
doomed.process.join()
del os.environ["DOOMED"]
child = Child()
from standin.core import count
doomed = {"pid": doomed.process.pid, "code": doomed.process.exitcode}
print(json.dumps({"doomed": doomed, "child": child.told(), "own": count()}))
child.end()
"""
    (told,), _ = job(audited, main)
    assert told["doomed"]["code"] == -9
    assert told["child"]["count"] == told["own"] == 2
    assert look_into(told["doomed"]["pid"]).problem == "there is no such process"


def test_sixteen_children_at_once(audited):
    main = """
import nrl_patches
children = [Child() for _ in range(16)]
print(json.dumps([child.told() for child in children]))
for child in children:
    child.end()
"""
    (told,), done = job(audited, main)
    assert [child["count"] for child in told] == [2] * 16
    assert len({child["pid"] for child in told}) == 16
    assert done.stderr == ""


UNSHARE = ("unshare", "--map-root-user", "--mount")


def _can_mount():
    asked = [*UNSHARE, "mount", "-o", "remount,bind,ro", "/"]
    return bool(shutil.which("unshare")) and not subprocess.run(asked, capture_output=True, check=False).returncode


READ_ONLY = 'for mount in / /tmp /dev/shm; do mount -o remount,bind,ro "$mount" 2>/dev/null; done; exec "$@"'


@pytest.mark.skipif(not _can_mount(), reason="this system lets nobody mount in a namespace of its own")
def test_a_read_only_file_system(audited):
    main = """
for place in (".", "/tmp", "/dev/shm"):
    assert os.statvfs(place).f_flag & os.ST_RDONLY, place
""" + ONE  # fmt: skip
    environ = {"PYTHONDONTWRITEBYTECODE": ""}  # Python itself would then write beside the sources.
    script = audited.folder / "sitecustomize.py"
    script.unlink()  # It would tell of Python's own attempts.
    (told,), done = job(audited, main, before=[*UNSHARE, "sh", "-c", READ_ONLY, "-"], **environ)
    assert told["count"] == 2
    assert done.stderr == ""


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
def test_no_home(audited, monkeypatch, home):
    monkeypatch.delenv("HOME", raising=False)
    environ = {} if home is None else {"HOME": home}
    (told,), done = job(audited, ONE, TMPDIR="/nonexistent", XDG_CACHE_HOME="/nonexistent", **environ)
    assert told["count"] == 2
    assert done.stderr == ""


def _other_pythons():
    """The interpreters of other versions that are installed beside this one."""
    beside = Path(sys.base_prefix).parent.glob("*/bin/python3.[0-9]*")
    versions = {path: re.fullmatch(r"python3\.(\d+)", path.name) for path in beside}
    return [p for p, v in sorted(versions.items()) if v and int(v[1]) >= 10 and int(v[1]) != sys.version_info.minor]


@pytest.fixture(params=_other_pythons() or [None], ids=lambda path: path.name if path else "none")
def other(request):
    if request.param is None:
        pytest.skip("no other Python of 3.10 or later is installed beside this one")
    return request.param


ENTRY = """
from nrl_patches_hosts import door, ray, startup, vllm
from standin.core import count
{call}
print(count(), bool(door.failure))
"""


@pytest.mark.parametrize("call", ["vllm.plugin()", "ray.worker()", "startup.startup(None)"])
def test_another_python_that_lacks_what_we_need(audited, other, call):
    done = audited.python("-c", ENTRY.format(call=call), python=other)
    assert done.stdout == "1 True\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert ": expected to be imported; found ModuleNotFoundError: No module named " in line
    strict = audited.python("-c", ENTRY.format(call=call), python=other, NRL_PATCHES_STRICT="1")
    assert strict.returncode == 1


def test_another_python_that_has_it(audited, other, tmp_path_factory):
    minor = other.name.removeprefix("python")
    folder = tmp_path_factory.mktemp(minor)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--python-version", minor, "--only-binary=:all:"]
    subprocess.run([*pip, "--target", folder, "wrapt>=2", "packaging>=22"], check=True, capture_output=True)
    path = os.pathsep.join([str(audited.folder), str(folder)])
    done = audited.python("-c", ENTRY.format(call="ray.worker()"), python=other, PYTHONPATH=path)
    assert (done.stdout, done.stderr) == ("2 False\n", "")


def test_a_worker_with_the_interpreter_of_another_environment(audited, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    main = f"multiprocessing.set_executable({str(folder / 'bin' / 'python')!r})\n{ONE}"
    (told,), done = job(audited, main)
    assert told["count"] == 2
    assert done.stderr == ""


@pytest.mark.parametrize("waiting", [False, True])
def test_the_package_upgraded_while_the_job_runs(audited, waiting):
    upgraded = Copy(audited.write("next/empty", "").parent)
    upgraded.patch(fix=ADD_ONE.replace("+ 1", "+ 10"))
    init = upgraded.folder / "nrl_patches" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, "9.9"))
    main = f"""
import nrl_patches
{"" if waiting else "nrl_patches.status()"}
print("ready", flush=True)
sys.stdin.readline()
child = Child()
told = child.told()
from standin.core import count
print(json.dumps(told | dict(own=count(), own_version=nrl_patches.__version__)), flush=True)
sys.stdin.readline()
child.end()
"""
    script = audited.write("job.py", JOB + textwrap.indent(main.strip(), "    "))
    process = subprocess.Popen(
        [sys.executable, script],
        env=audited.environ(), cwd=audited.folder,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    shutil.rmtree(audited.folder / "nrl_patches")
    (upgraded.folder / "nrl_patches").rename(audited.folder / "nrl_patches")
    process.stdin.write("\n")
    process.stdin.flush()
    told = json.loads(process.stdout.readline())
    # The old process goes on with what it has loaded; if that was not all, it says so. The new one has the new version.
    assert (told["own"], told["own_version"]) == (11 if waiting else 2, __version__)
    assert (told["count"], told["version"]) == (11, "9.9")
    (record,) = look_into(told["pid"]).records
    (note,) = record["notes"]
    expected = f"expected nrl_patches {__version__}, as in the parent process; found nrl_patches 9.9 in "
    assert note.startswith(f"process {told['pid']}: {expected}")
    _, stderr = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    lines = stderr.splitlines()
    if waiting:
        assert "put there before the first target was imported here; next step: restart the job" in lines.pop(0)
    assert lines == [note]


def test_half_an_upgrade(audited):
    # Files of two versions: the import fails, the child says so and goes on.
    broken = "import os\nif os.environ.get('HALF'):\n    raise ImportError('cannot import name')\n"
    errors = audited.folder / "nrl_patches" / "errors.py"
    errors.write_text(broken + errors.read_text().replace("from __future__ import annotations\n", ""))
    main = f"import nrl_patches\nnrl_patches.status()\nos.environ['HALF'] = '1'\n{ONE}"
    (told,), done = job(audited, main)
    assert told["count"] == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "nrl_patches (multiprocessing): expected to be imported; found ImportError: cannot import name"
    )
    assert line.endswith("; this process runs without any patch")
