"""The package in an archive on the path, as a wheel is: whatever works from a folder works from there."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest
from package_copy import Copy
from standins import ROOT

from nrl_patches import __version__


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A folder with an archive of a copy of the package, and beside it the stand-in that its patch is about."""
    copy = Copy(tmp_path_factory.mktemp("copy"))
    copy.patch()
    info = copy.write(
        f"nrl_patches-{__version__}.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: nrl-patches\nVersion: {__version__}\n",
    )
    groups = "[nrl_patches.startup]\nvllm = nrl_patches_hosts.startup:startup\n"
    info.with_name("entry_points.txt").write_text(groups)
    folder = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(folder / "package.zip", "w") as made:
        for file in copy.folder.rglob("*"):
            made.write(file, file.relative_to(copy.folder))
    copy.folder = folder
    copy.upstream()
    copy.write("vllm/__init__.py", "import standin.core\n")
    copy.path = os.pathsep.join([str(folder / "package.zip"), str(folder)])
    return copy


def run(copy, *args):
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_command.py"), *args],
        env=copy.environ(PYTHONPATH=copy.path), cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_tripwires(archive):
    done = run(archive, "tripwires", "--format", "json")
    assert done.returncode == 0, done.stderr
    (tripwire,) = json.loads(done.stdout)["tripwires"]
    assert tripwire["verdict"] == "needed"
    assert tripwire["file"].startswith(f"{archive.folder}/package.zip/")


def test_what_was_measured_and_of_which_code(archive):
    code = """
import nrl_patches
from nrl_patches.engine.activation import default_activation
from nrl_patches.matrix.evidence import COMMITTED, Evidence
from nrl_patches.matrix.fingerprint import fingerprint
(patch,) = default_activation().registry
print(nrl_patches.__file__, len(Evidence.read(COMMITTED).measurements) > 9, fingerprint(patch))
"""
    done = archive.python("-c", code, PYTHONPATH=archive.path)
    assert done.returncode == 0, done.stderr
    file, measured, code = done.stdout.split()
    assert (file, measured) == (f"{archive.folder}/package.zip/nrl_patches/__init__.py", "True")
    assert code != hashlib.sha256().hexdigest()[:12]  # That of no code at all.


def test_a_program_that_cannot_be_changed(archive):
    code = "import vllm, standin.core, nrl_patches; print(standin.core.count(), nrl_patches.activated_by)"
    done = run(archive, "run", "--", sys.executable, "-c", code)
    assert done.stdout == "2 startup\n", done.stderr


def test_the_documentation(archive):
    done = run(archive, "docs", "stat")
    assert done.stdout == (ROOT / "nrl_patches" / "docs" / "statuses.md").read_text(encoding="utf-8"), done.stderr


def test_the_doctor_and_the_versions_on_the_path(archive, tmp_path):
    other = Copy(tmp_path)
    init = other.folder / "nrl_patches" / "__init__.py"
    init.write_text(init.read_text().replace(f'"{__version__}"', '"9.9"'))
    done = archive.run("nrl_patches", "doctor", PYTHONPATH=os.pathsep.join([archive.path, str(tmp_path)]))
    assert "The targets of 1 patch were imported" in done.stdout, done.stderr
    assert f"{__version__} in {archive.folder}/package.zip/nrl_patches, 9.9 in {tmp_path}/nrl_patches" in done.stdout
