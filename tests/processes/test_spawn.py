"""Children of multiprocessing have the patches, whatever their own code imports."""

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest
from releases import results, run_on

FOLDER = Path(__file__).parent
CHILDREN = FOLDER / "multiprocessing_children.py"
GEMMA4 = "transformers.gemma4_kv_sharing_needs_cache"


@pytest.fixture(scope="module")
def real():
    return results(run_on("transformers==5.5.0", CHILDREN, GEMMA4, fresh=True))


@pytest.mark.xdist_group("transformers==5.5.0")
@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver", "pool"])
def test_the_defect_is_gone_in_the_child(real, way):
    path = "import" if way == "fork" else "multiprocessing"
    child = real[way]
    assert child.pop("pid") != real["parent"]
    assert child == {"present": False, "state": "applied", "activated_by": path}


@pytest.mark.xdist_group("transformers==5.5.0")
def test_the_opt_out_holds_in_every_child():
    found = results(
        run_on("transformers==5.5.0", CHILDREN, GEMMA4, fresh=True, NRL_DISABLE_GEMMA4_KV_SHARING_PATCH="1")
    )
    for way in ("fork", "spawn", "forkserver", "pool"):
        assert (found[way]["present"], found[way]["state"]) == (True, "disabled")


# From here on a stand-in, and children that cost nothing.

PARENT = (FOLDER / "spawn_parent.py").read_text(encoding="utf-8") + '\nif __name__ == "__main__":\n'

METHODS = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])


def children(copy, main, **environ):
    """Run a main part in which ``child(method)`` starts a child; return what the children told, and the process."""
    script = copy.write("job.py", PARENT + textwrap.indent(main, "    "))
    done = copy.python(script, **environ)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done


@METHODS
def test_a_patch_undone_in_the_parent_stays_undone(copy, method):
    main = f"""
import nrl_patches
child("{method}")
with nrl_patches.undo("standin.count"):
    child("{method}")
child("{method}")
"""
    (before, within, after), _ = children(copy, main)
    assert before["count"] == after["count"] == 2
    assert (within["count"], within["state"]) == (1, "disabled")
    own = "" if method == "fork" else ", in the parent process"
    assert within["reason"] == f"undone by nrl_patches.undo{own}"


def test_a_fork_server_that_is_older_than_the_settings(copy):
    # It hands its own environment down to every child.
    main = """
child("forkserver")
os.environ["NRL_DISABLE_COUNT"] = "1"
import nrl_patches
child("forkserver")
del os.environ["NRL_DISABLE_COUNT"]
child("forkserver")
"""
    (before, after, kept), _ = children(copy, main)
    assert before == {"count": 1, "activated_by": None}
    assert (after["state"], after["reason"]) == ("disabled", "NRL_DISABLE_COUNT=1")
    assert (kept["state"], kept["reason"]) == ("disabled", "NRL_DISABLE_COUNT=1, in the parent process")


def test_the_settings_of_the_child_s_own_launcher(copy):
    launcher = copy.write("launcher", f'#!/bin/sh\nNRL_DISABLE_COUNT=1 exec {sys.executable} "$@"\n')
    launcher.chmod(0o755)
    main = f"import nrl_patches\nmultiprocessing.set_executable({str(launcher)!r})\nchild('spawn')"
    (told,), _ = children(copy, main)
    assert (told["count"], told["reason"]) == (1, "NRL_DISABLE_COUNT=1")


def test_a_fork_server_that_has_imported_the_package_itself(copy):
    copy.write("preloaded.py", "import nrl_patches, standin.core")
    main = """
import nrl_patches
multiprocessing.set_forkserver_preload(["preloaded"])
child("forkserver")
nrl_patches.undo("standin.count")
child("forkserver")
"""
    (before, after), _ = children(copy, main)
    assert (before["count"], before["state"], before["activated_by"]) == (2, "applied", "import")
    assert (after["count"], after["state"]) == (1, "disabled")
    assert after["reason"] == "undone by nrl_patches.undo, in the parent process"


@pytest.mark.parametrize("strict", ["0", "1"])
def test_what_cannot_be_left_out_keeps_nothing_else(copy, strict):
    # A fork server may have it all, and another party's patch on top of one.
    copy.upstream(core="def count():\n    return 1\n\ndef more():\n    return 1\n")
    copy.patch("more", target="standin.core:more", opt_out="NRL_DISABLE_MORE")
    code = """
import nrl_patches, standin.core
ours = standin.core.count
standin.core.count = lambda: ours()
try:
    nrl_patches._activation.leave_out({"standin.count": "x", "standin.more": "x"})
except nrl_patches.UndoError:
    print("raised")
print(nrl_patches.status()["standin.more"].reason)
"""
    done = copy.python("-c", code, NRL_PATCHES_STRICT=strict)
    assert done.stdout == "raised\n" * int(strict) + "x, in the parent process\n", done.stderr
    assert done.stderr.startswith("off in the parent process, but still applied here: standin.count: expected ")


def test_the_path_of_the_parent_counts(copy):
    # The child's own path does not have it: it learns of the parent's.
    main = f"import sys\nsys.path.insert(0, {str(copy.folder / 'elsewhere')!r})\nimport nrl_patches\nchild('spawn')"
    (copy.folder / "elsewhere").mkdir()
    for name in ("nrl_patches", "standin", "standin-1.0.dist-info"):
        (copy.folder / name).rename(copy.folder / "elsewhere" / name)
    (told,), _ = children(copy, main)
    assert (told["count"], told["activated_by"]) == (2, "multiprocessing")


@pytest.mark.parametrize("imports", ["import multiprocessing.spawn, nrl_patches", "import nrl_patches"])
def test_whichever_was_imported_first(copy, imports):
    (told,), _ = children(copy, f"{imports}\nchild('spawn')")
    assert told["activated_by"] == "multiprocessing"


def test_importing_it_does_not_import_multiprocessing(copy):
    done = copy.python("-c", "import nrl_patches, sys; print('multiprocessing' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_a_module_of_the_child_that_imports_it_itself_changes_nothing(copy):
    script = PARENT + "    child('spawn')\n"
    copy.write("job.py", f"import nrl_patches\n{script}")
    done = copy.python("job.py")
    assert json.loads(done.stdout)["activated_by"] == "multiprocessing", done.stderr


def test_grandchildren(copy):
    copy.write(
        "job.py",
        """
import multiprocessing, sys

def grandchild(connection):
    package = sys.modules["nrl_patches"]
    connection.send((package.activated_by, package.status()["standin.count"].state))

def child(connection):
    process = multiprocessing.get_context("spawn").Process(target=grandchild, args=(connection,))
    process.start()
    process.join()

if __name__ == "__main__":
    import nrl_patches
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    print(*ours.recv())
    process.join()
""",
    )
    done = copy.python("job.py")
    assert done.stdout == "multiprocessing pending\n", done.stderr


def test_off_replaces_nothing(copy):
    main = """
import multiprocessing.spawn as spawn
before = spawn.get_preparation_data
import nrl_patches
assert spawn.get_preparation_data is before
child("spawn")
"""
    (told,), _ = children(copy, main, NRL_PATCHES="0")
    assert told == {"count": 1, "activated_by": None}


def test_replaced_once_and_again_when_the_module_is_executed_again(copy):
    code = """
import multiprocessing.spawn as spawn, importlib
before = spawn.get_preparation_data
import nrl_patches
from nrl_patches.bootstrap import cover
ours = spawn.get_preparation_data
assert ours is not before
cover(spawn)
importlib.reload(nrl_patches)
assert spawn.get_preparation_data is ours
importlib.reload(spawn)
assert "nrl_patches" in spawn.get_preparation_data("x")
"""
    done = copy.python("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_python_without_the_function(copy):
    code = "import multiprocessing.spawn as spawn\ndel spawn.get_preparation_data\nimport nrl_patches"
    done = copy.python("-c", code)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("multiprocessing.spawn: expected get_preparation_data; found no such function")
    later = copy.python("-c", "import nrl_patches, multiprocessing.spawn\nimport standin.core")
    assert (later.returncode, later.stderr) == (0, "")
    strict = copy.python("-c", code, NRL_PATCHES_STRICT="1")
    assert "FailedError: multiprocessing.spawn: expected get_preparation_data" in strict.stderr


def test_a_second_copy_of_the_package_replaces_nothing(copy):
    code = """
import multiprocessing.spawn as spawn, sys
import nrl_patches
ours = spawn.get_preparation_data
for name in [name for name in sys.modules if name.partition(".")[0] == "nrl_patches"]:
    del sys.modules[name]
import nrl_patches
assert spawn.get_preparation_data is ours
"""
    done = copy.python("-c", code)
    assert done.returncode == 0, done.stderr


def test_another_tool_on_the_same_function(copy):
    main = """
import multiprocessing.spawn as spawn
import nrl_patches
ours = spawn.get_preparation_data
spawn.get_preparation_data = lambda name: {**ours(name), "theirs": 1}
child("spawn")
"""
    (told,), _ = children(copy, main)
    assert told["count"] == 2


def test_torch_multiprocessing_and_its_data_loader(copy):
    copy.write(
        "job.py",
        """
import sys
import torch
from torch.utils.data import DataLoader, Dataset

class Asked(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        from standin.core import count
        return count()

def rank(index):
    from standin.core import count
    assert count() == 2
    assert sys.modules["nrl_patches"].activated_by == "multiprocessing"

if __name__ == "__main__":
    import nrl_patches
    torch.multiprocessing.spawn(rank, nprocs=2)
    loader = DataLoader(Asked(), num_workers=1, multiprocessing_context="spawn")
    print([batch.item() for batch in loader])
""",
    )
    done = copy.python("job.py")
    assert done.stdout == "[2, 2]\n", done.stderr


BLOCKED = "raise ImportError('not for this interpreter')"


def without_the_package(copy):
    """Return the path on which children find another package of that name once the copy's own has been renamed."""
    blocked = copy.write("blocked/nrl_patches/__init__.py", BLOCKED).parents[1]
    return os.pathsep.join([str(copy.folder), str(blocked)])


def test_a_child_that_cannot_import_the_package_says_so_and_goes_on(copy):
    main = "import nrl_patches\nnrl_patches.status()\nos.rename('nrl_patches', 'gone')\nchild('spawn')"
    (told,), done = children(copy, main, PYTHONPATH=without_the_package(copy))
    assert told == {"count": 1, "activated_by": None}
    (line,) = done.stderr.splitlines()
    assert "expected nrl_patches as in its parent process; found" in line
    assert f"found ImportError: not for this interpreter; next step: install nrl-patches for {sys.executable}; " in line


def test_and_fails_under_strict(copy):
    main = """
import nrl_patches
nrl_patches.status()
os.rename("nrl_patches", "gone")
process = multiprocessing.get_context("spawn").Process(target=print)
process.start()
process.join()
print(process.exitcode)
"""
    (code,), done = children(copy, main, PYTHONPATH=without_the_package(copy), NRL_PATCHES_STRICT="1")
    assert code == 1
    assert "ImportError: not for this interpreter" in done.stderr
