"""The oldest releases of our own dependencies that pyproject.toml allows; everything else runs on the newest."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from standins import ROOT

pytest.importorskip("uv", reason="installs them")

from releases import FOLDER

from nrl_patches.matrix.environments import Part, build_part

pytestmark = pytest.mark.xdist_group("lowest dependencies")


@pytest.fixture(scope="module")
def run():
    required = [Requirement(text) for text in importlib.metadata.requires("nrl-patches") or ()]
    floors = [str(r).replace(">=", "==") for r in required if r.marker is None]
    assert len(floors) == 4
    folder = build_part(Part(tuple(floors)), FOLDER)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}

    def run(*command, **more):
        return subprocess.run(
            [sys.executable, "-m", *command], env=environ | more, cwd=ROOT, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize(
    "command", [["list"], ["status", "--help"], ["matrix", "--help"], ["run", "--help"], ["audit"], ["demo", "--help"]]
)
def test_the_command_line_starts(run, command):
    done = run("nrl_patches", *command)
    assert done.returncode == 0, done.stderr


def test_a_page_is_rendered(run):
    done = run("nrl_patches", "docs", "limits", FORCE_COLOR="1", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "transformers.tied_weights_tensor_parallel" in done.stdout
    assert "| id |" not in done.stdout


def test_the_engine_passes_its_tests(run):
    files = ("test_activation.py", "test_affected.py", "test_import_hooks.py", "test_slots.py")
    done = run("pytest", "-q", "-p", "no:cacheprovider", *(f"tests/engine/{file}" for file in files))
    assert done.returncode == 0, done.stdout
