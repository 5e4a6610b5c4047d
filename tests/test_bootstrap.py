"""``import nrl_patches`` waits until the engine is needed, and nothing that counted on the engine is missed."""

import subprocess
import sys

import pytest
from package_copy import Copy

from nrl_patches import __version__

LOADED = "print('nrl_patches.engine.activation' in sys.modules, 'wrapt' in sys.modules)"
COUNT = "from standin.core import count\nprint(count())"


@pytest.fixture
def copy(tmp_path):
    copy = Copy(tmp_path)
    copy.upstream()
    copy.patch()
    return copy


def output(copy, code, **environ):
    done = copy.python("-c", f"import sys\n{code}", **environ)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split("\n")[:-1]


def test_it_waits_for_a_package_with_a_target(copy):
    code = f"import nrl_patches, json, logging\n{LOADED}\nimport standin\n{LOADED}\n{COUNT}"
    assert output(copy, code) == ["False False", "True True", "2"]


@pytest.mark.parametrize("ask", ["nrl_patches.status()", "from nrl_patches import undo", "nrl_patches._activation"])
def test_it_waits_for_somebody_who_asks(copy, ask):
    assert output(copy, f"import nrl_patches\n{LOADED}\n{ask}\n{LOADED}") == ["False False", "True True"]


@pytest.mark.parametrize(
    "environ",
    [{"NRL_PATCHES": "0"}, {"NRL_PATCHES_ONLY": "*"}, {"NRL_DISABLE_COUNT": "0"}, {"NRL_PATCHES_STRICT": "1"}],
)
def test_a_variable_of_ours_wants_a_verdict_at_once(copy, environ):
    assert output(copy, f"import nrl_patches\n{LOADED}", **environ) == ["True True"]


def test_a_package_with_a_target_that_is_there_already_is_patched_at_once(copy):
    code = f"from standin.core import count\nimport nrl_patches\n{LOADED}\nprint(count())"
    assert output(copy, code)[0] == "True True"


def test_names_that_nobody_has_used_are_there(copy):
    code = """
import nrl_patches
print(set(nrl_patches.__all__) <= set(dir(nrl_patches)), nrl_patches.activated_by, nrl_patches.__version__)
from nrl_patches import *
print(PatchError.__name__, State.APPLIED, callable(status))
try:
    nrl_patches.nothing
except AttributeError as error:
    print(error)
import nrl_patches.engine.status
print(nrl_patches.status()["standin.count"].state)
"""
    assert output(copy, code) == [
        f"True import {__version__}",
        "PatchError applied True",
        "module 'nrl_patches' has no attribute 'nothing'",
        "pending",
    ]


def test_a_reload_changes_nothing(copy):
    code = f"""
import importlib, nrl_patches
importlib.reload(nrl_patches)
{LOADED}
{COUNT}
finders, status = list(sys.meta_path), nrl_patches.status
importlib.reload(nrl_patches)
print(list(sys.meta_path) == finders, nrl_patches.status is status, count())
"""
    assert output(copy, code) == ["False False", "2", "True True 2"]


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_finder_that_is_in_front_hides_nothing(copy, where):
    greedy = """
from importlib.machinery import PathFinder
class Greedy:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path, target)
"""
    front = "sys.meta_path.insert(0, Greedy)\n"
    code = greedy + (front if where == "before" else "") + "import nrl_patches\n" + (front if where == "after" else "")
    assert output(copy, code + COUNT) == ["2"]


def test_what_was_imported_past_it_is_noticed_when_somebody_asks(copy):
    code = f"import nrl_patches\nsys.meta_path = list(sys.meta_path)[1:]\n{COUNT}\nnrl_patches.status()\nprint(count())"
    assert output(copy, code) == ["1", "2"]


def test_of_two_copies_the_one_that_still_has_its_modules_is_opened(copy, tmp_path_factory):
    other = Copy(tmp_path_factory.mktemp("other"))
    other.patch("more", target="standin.core:more", opt_out="NRL_DISABLE_MORE")
    copy.upstream(core="def count():\n    return 1\n\ndef more():\n    return 1\n")
    code = f"""
import nrl_patches
for name in [name for name in sys.modules if name.partition(".")[0] == "nrl_patches"]:
    del sys.modules[name]
sys.path.insert(0, {str(other.folder)!r})
import nrl_patches
sys.path.remove({str(other.folder)!r})
from standin.core import count, more
print(count(), more())
"""
    assert output(copy, code) == ["1 2"]


BROKEN = "raise KeyError('half an upgrade')"


def test_an_engine_that_cannot_be_loaded_leaves_the_host_alone_and_says_so(copy):
    copy.write("nrl_patches/errors.py", BROKEN)
    done = copy.python("-c", f"import nrl_patches\n{COUNT}\n{COUNT}")
    assert (done.returncode, done.stdout) == (0, "1\n1\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "nrl_patches (import): expected to be imported; found KeyError: 'half an upgrade'; next step: "
    )
    strict = copy.python("-c", f"import nrl_patches\n{COUNT}", NRL_PATCHES_STRICT="1")
    assert strict.returncode == 1
    assert strict.stderr.rstrip().endswith("KeyError: 'half an upgrade'")


def test_two_threads_that_import_their_first_target_at_once(copy):
    copy.write("standin/other.py", "def count():\n    return 1\n")
    copy.patch("other", target="standin.other:count", opt_out="NRL_DISABLE_OTHER")
    code = """
import threading, nrl_patches
sys.setswitchinterval(1e-6)
barrier, found = threading.Barrier(8), []
def run(name):
    barrier.wait()
    found.append(__import__(f"standin.{name}", fromlist=["count"]).count())
threads = [threading.Thread(target=run, args=(name,)) for name in ("core", "other") * 4]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(found)
"""
    for _ in range(3):
        assert output(copy, code) == [str([2] * 8)]


def test_a_child_that_is_forked_while_the_parent_waits(copy):
    code = """
import os, nrl_patches
pid = os.fork()
from standin.core import count
os.write(1, f"{count()}\\n".encode())
if pid:
    os.waitpid(pid, 0)
else:
    os._exit(0)
"""
    assert output(copy, code) == ["2", "2"]


def test_a_waiting_process_says_so_and_is_no_problem(copy):
    process = subprocess.Popen(
        [sys.executable, "-c", "import nrl_patches; print(flush=True); input()"],
        env=copy.environ(), cwd=copy.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    told = copy.run("nrl_patches", "status", "--pid", process.pid)
    assert told.returncode == 0
    assert "waits for the import of a package with a target: standin" in told.stdout
    doctor = copy.run("nrl_patches", "doctor", "--no-imports", "--pid", process.pid)
    assert doctor.stdout.startswith("Nothing found"), doctor.stdout
    process.communicate("\n", timeout=60)


@pytest.mark.parametrize("order", ["multiprocessing.spawn, nrl_patches", "nrl_patches, multiprocessing.spawn"])
def test_a_child_is_covered_although_nobody_has_imported_a_target(copy, order):
    code = f"""
import {order}, multiprocessing
def child():
    {COUNT.replace(chr(10), chr(10) + "    ")}
if __name__ == "__main__":
    {LOADED}
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""
    script = copy.write("job.py", f"import sys\n{code}")
    done = copy.python(script)
    assert done.stdout == "False False\n2\n", done.stderr
