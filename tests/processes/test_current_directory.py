"""What lies in the current directory, as in a checkout of transformers, is neither executed nor told about."""

import json
import os
import subprocess
import sys

import pytest
from package_copy import RIGHT
from standins import ROOT

EXECUTED = "import sys\nsys.stderr.write('executed ' + __name__)\nraise SystemExit(5)\n"

OF_PYTHON = ("contextlib", "importlib/__init__", "linecache", "runpy", "site", "types", "warnings")
"""What `python -m` itself may import before it has found the module that it was told to run."""

OTHERS = (
    "__future__", "autowrapt/__init__", "click", "fcntl", "importlib_metadata", "json", "logging", "packaging/__init__",
    "resource", "signal", "sitecustomize", "subprocess", "tempfile", "torch/__init__", "uv/__init__", "uv/__main__",
    "usercustomize", "wrapt/__init__",
)  # fmt: skip


def fill(folder, names):
    """Fill a folder with what must not be executed, and with a release that is not the installed one."""
    for name in names:
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(EXECUTED)
    (folder / "standin").mkdir()
    (folder / "standin" / "__init__.py").write_text("")
    (folder / "standin" / "core.py").write_text(RIGHT)
    (folder / "standin-3.dist-info").mkdir()
    (folder / "standin-3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: standin\nVersion: 3\n")
    return folder


COMMANDS = pytest.mark.parametrize(
    "args",
    [
        ("tripwires", "--format", "json"),
        ("doctor", "--python", sys.executable),
        ("run", "--", sys.executable, "/dev/null"),
    ],
    ids=lambda args: args[0],
)


def check(done, args):
    assert (done.returncode, "executed" in done.stderr) == (0, False), done.stderr
    if args[0] == "tripwires":
        (tripwire,) = json.loads(done.stdout)["tripwires"]
        assert (tripwire["verdict"], tripwire["installed"]) == ("needed", {"standin": "standin 1.0"})
    elif args[0] == "doctor":
        assert "The targets of 1 patch were imported" in done.stdout


@COMMANDS
def test_the_installed_command(copy, tmp_path_factory, args):
    # As pip installs it, the command is a script, and Python looks for modules beside it.
    here = fill(tmp_path_factory.mktemp("here"), (*OF_PYTHON, *OTHERS))
    command = [sys.executable, str(ROOT / "tests" / "run_command.py"), *args]
    done = subprocess.run(command, env=copy.environ(), cwd=here, capture_output=True, text=True, check=False)
    check(done, args)


@COMMANDS
def test_the_module(copy, tmp_path_factory, args):
    here = fill(tmp_path_factory.mktemp("here"), OTHERS)
    command = [sys.executable, "-m", "nrl_patches", *args]
    done = subprocess.run(command, env=copy.environ(), cwd=here, capture_output=True, text=True, check=False)
    check(done, args)


def test_what_the_user_has_put_on_the_path_stays_there(copy, tmp_path_factory):
    here = fill(tmp_path_factory.mktemp("here"), ())
    path = os.pathsep.join([".", str(copy.folder)])
    command = [sys.executable, str(ROOT / "tests" / "run_command.py"), "tripwires", "--format", "json"]
    done = subprocess.run(
        command, env=copy.environ(PYTHONPATH=path), cwd=here, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["tripwires"][0]["installed"] == {"standin": "standin 3"}, done.stderr


def test_only_the_module_that_python_was_told_to_run_loses_the_directory(copy, tmp_path_factory):
    here = tmp_path_factory.mktemp("here")
    (here / "mine").mkdir()
    (here / "mine" / "__init__.py").write_text("import nrl_patches, sys\nprint(sys.path[0])\n")
    (here / "mine" / "__main__.py").write_text("")
    for args in (["-m", "mine", "nrl_patches"], ["-mmine", "-m", "nrl_patches"]):
        done = subprocess.run(
            [sys.executable, *args], env=copy.environ(), cwd=here, capture_output=True, text=True, check=False
        )
        assert done.stdout == f"{here}\n", done.stderr
