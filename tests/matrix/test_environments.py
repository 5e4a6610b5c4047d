"""How releases are installed beside each other, on an index of our own."""

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from matrix.local_index import Index, serve
from package_copy import RIGHT

from nrl_patches.matrix import environments
from nrl_patches.matrix import index as package_index
from nrl_patches.matrix.environments import (
    BuildProblem,
    Part,
    build,
    build_part,
    declared_requirement,
    variables,
)
from nrl_patches.matrix.index import IndexProblem, find_releases
from nrl_patches.matrix.names import name_environment, parse_environment


@pytest.fixture
def index(monkeypatch):
    made = Index()
    with serve(made) as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        monkeypatch.delenv("UV_CACHE_DIR", raising=False)
        yield made


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def test_an_environment_and_its_name():
    name = "nemo-automodel==0.6.0 & transformers==5.12.1"
    assert name_environment(parse_environment(name)) == name
    assert [*parse_environment("Nemo_Automodel==0.6.0")] == ["nemo-automodel"]


def test_a_release_comes_with_what_it_depends_on_but_without_torch(index, tmp_path):
    index.add("1.0", RIGHT, requires=("torch>=2", "other"))
    index.add("0.5", RIGHT, name="other")
    (folder,) = build("standin==1.0", tmp_path)
    assert {"standin", "other"} <= names(folder)
    assert "/simple/torch/" not in index.requests
    assert names(tmp_path) == {folder.name, "cache"}


def test_without_dependencies_nothing_else_is_installed(index, tmp_path):
    index.add("1.0", RIGHT, requires=("other",))
    folder = build_part(Part(("standin==1.0",)), tmp_path)
    assert "standin" in names(folder)
    assert "/simple/other/" not in index.requests


def test_what_is_there_is_not_installed_again_and_the_first_of_several_wins(index, tmp_path):
    index.add("1.0", RIGHT)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: build("standin==1.0", tmp_path)[0], range(3)))
    assert len(folders) == 1
    assert names(tmp_path) == {folders.pop().name, "cache"}
    asked = len(index.requests)
    build("standin==1.0", tmp_path)
    assert len(index.requests) == asked


def test_what_cannot_be_installed_says_what_the_installer_said_and_leaves_nothing(index, tmp_path):
    index.add("1.0", RIGHT)
    with pytest.raises(BuildProblem, match=r"standin==2\.0 cannot be installed: .*no version of standin==2\.0"):
        build("standin==2.0", tmp_path)
    assert names(tmp_path) == {"cache"}


def test_what_a_release_requires_of_another_is_read_from_its_metadata(index, tmp_path):
    index.add("1.0", RIGHT, requires=("other>=3,<4", "extra ; extra == 'all'", "old ; python_version < '3'"))
    index.add("3.1", RIGHT, name="other")
    assert str(declared_requirement("standin==1.0", "other", tmp_path)) == "other<4,>=3"
    assert declared_requirement("standin==1.0", "extra", tmp_path) is None
    assert declared_requirement("standin==1.0", "old", tmp_path) is None


def archive(version):
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: standin\nVersion: {version}\n",
        "setup.py": "raise SystemExit('must not be run')",
        "standin/__init__.py": f"__version__ = '{version}'\n",
        "tests/test_standin.py": "",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, text in files.items():
            member = tarfile.TarInfo(f"standin-{version}/{path}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def test_a_source_archive_is_unpacked_and_not_built(index, tmp_path):
    index.files["standin-1.0.tar.gz"] = archive("1.0")
    index.attributes["standin-1.0.tar.gz"] = ""
    folder = build_part(Part(("standin==1.0",), source=True), tmp_path)
    assert names(folder) == {"standin", "standin-1.0.dist-info"}
    assert names(folder / "standin-1.0.dist-info") == {"METADATA"}
    with pytest.raises(BuildProblem, match=r"standin 1\.1 has no source archive"):
        build_part(Part(("standin==1.1",), source=True), tmp_path)


def test_a_source_archive_that_never_arrives_is_not_waited_for(index, tmp_path, monkeypatch):
    monkeypatch.setattr(package_index, "_TIMEOUT", 0.5)
    index.files["standin-1.0.tar.gz"] = archive("1.0")
    index.attributes["standin-1.0.tar.gz"] = ""
    index.stalled.add("standin-1.0.tar.gz")
    with pytest.raises(BuildProblem, match=r"standin-1\.0\.tar\.gz cannot be fetched: .*timed out"):
        build_part(Part(("standin==1.0",), source=True), tmp_path)
    assert names(tmp_path) == set()


def test_an_installer_that_does_not_end_is_killed(index, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_INSTALLER_TIMEOUT", 2.0)
    index.add("1.0", RIGHT)
    index.stalled.add("standin-1.0-py3-none-any.whl")
    with pytest.raises(BuildProblem, match=r"standin==1\.0 cannot be installed: the installer took longer than 2 s"):
        build_part(Part(("standin==1.0",)), tmp_path)
    assert names(tmp_path) <= {"cache"}


def test_releases_pre_releases_and_yanked_ones_are_told_apart(index):
    index.add("1.10", RIGHT)
    index.add("1.9", RIGHT, yanked="by mistake")
    index.add("1.8", RIGHT, yanked="")
    index.add("2.0rc1", RIGHT)
    # One yanked file of several does not make a yanked release.
    index.files["standin-1.10.tar.gz"] = archive("1.10")
    index.attributes["standin-1.10.tar.gz"] = ' data-yanked="broken archive"'
    found = [(str(release.version), release.remark) for release in find_releases("standin")]
    assert found == [
        ("1.8", "yanked: no reason given"),
        ("1.9", "yanked: by mistake"),
        ("1.10", ""),
        ("2.0rc1", "pre-release"),
    ]
    with pytest.raises(IndexProblem, match="nowhere"):
        find_releases("nowhere")


def test_the_index_is_the_one_that_the_installer_uses(monkeypatch):
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("UV_INDEX_URL", "http://127.0.0.1:9/uv/")
    with pytest.raises(IndexProblem, match="/uv/"):
        find_releases("standin")


def test_a_process_sees_the_releases_and_this_copy_of_the_package_and_none_of_our_settings(tmp_path):
    environ = {"NRL_PATCHES_ONLY": "x", "NRL_DISABLE_X": "1", "VLLM_PLUGINS": "x", "PYTHONPATH": "/elsewhere", "A": "b"}
    found = variables([tmp_path / "a", tmp_path / "b"], environ)
    assert found["PYTHONPATH"].split(":")[:2] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert found["PYTHONPATH"].endswith(str(environments.Path(environments.__file__).parents[2]))
    assert found["A"] == "b"
    assert not any(name.startswith(("NRL_", "VLLM_PLUGINS")) for name in found)
