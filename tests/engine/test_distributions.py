import sys
import types

import pytest
from packaging.version import Version
from standins import only

from nrl_patches.engine.distributions import find_installed


def version(distribution):
    return find_installed(distribution).version


def test_by_metadata_without_importing(sandbox):
    sandbox.distribution("1.2.3", init="raise RuntimeError('imported')")
    assert version(sandbox.name) == Version("1.2.3")
    assert sandbox.name not in sys.modules


def test_absent():
    assert find_installed("nrl-no-such-distribution") is None


def test_distributed_under_another_name(sandbox):
    package = sandbox.distribution("0.30.0", name=f"{sandbox.name}-cpu", package=sandbox.name)
    assert str(find_installed(package)) == f"{sandbox.name}-cpu 0.30.0"


def test_source_tree_without_metadata(sandbox):
    sandbox.distribution(None)
    assert version(sandbox.name) is None
    assert "version unknown" in str(find_installed(sandbox.name))


def test_version_attribute_of_an_imported_source_tree(sandbox):
    sandbox.distribution(None, init="__version__ = '0.5.0rc0+6de0c361'")
    __import__(sandbox.name)
    assert version(sandbox.name) == Version("0.5.0rc0+6de0c361")


def test_running_code_wins_over_stale_metadata_and_says_so(sandbox):
    sandbox.distribution("1.0", init="__version__ = '2.0'")
    assert version(sandbox.name) == Version("1.0")
    __import__(sandbox.name)
    assert version(sandbox.name) == Version("2.0")
    assert "its metadata says 1.0" in str(find_installed(sandbox.name))


@pytest.mark.parametrize(("origin", "found"), [(None, "1.0"), ('{"dir_info": {"editable": true}}', "1.0+6de0c361")])
def test_a_commit_label_counts_only_where_a_commit_was_installed(sandbox, origin, found):
    sandbox.distribution("1.0", init="__version__ = '1.0+6de0c361'")
    if origin:
        sandbox.write(f"{sandbox.name}-1.0.dist-info/direct_url.json", origin)
    __import__(sandbox.name)
    assert version(sandbox.name) == Version(found)


@pytest.mark.parametrize("attribute", ["'dev'", "None", "3"])
def test_unreadable_version_attribute_leaves_the_metadata(sandbox, attribute):
    sandbox.distribution("1.0", init=f"__version__ = {attribute}" if attribute != "3" else "")
    __import__(sandbox.name)
    assert version(sandbox.name) == Version("1.0")


def test_a_mere_folder_of_that_name_is_no_installation(sandbox):
    sandbox.write(f"{sandbox.name}/notes.txt", "a checkout, say")
    assert find_installed(sandbox.name) is None


def test_package_without_spec_and_blocked_package(monkeypatch):
    bare = types.ModuleType("nrl_bare")
    bare.__version__ = "4.2"
    monkeypatch.setitem(sys.modules, "nrl_bare", bare)
    monkeypatch.setitem(sys.modules, "nrl_blocked", None)
    assert version("nrl-bare") == Version("4.2")
    assert find_installed("nrl-blocked") is None


class TestBrokenMetadata:
    """Whatever stands in the metadata of whatever distribution, somebody can say what is installed."""

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"Metadata-Version: 2.1\nAuthor: J\xf6rg\nName: {name}\nVersion: 1.0\n", "UnicodeDecodeError"),
            (b"Metadata-Version: 2.1\nName: {name}\n", "version unknown"),
            (b"Metadata-Version: 2.1\nName: {name}\nVersion: one\n", "version unknown"),
            (b"", "version unknown"),
            (b"\0\xff", "version unknown"),
        ],
        ids=["not UTF-8", "no version", "no such version", "empty", "binary"],
    )
    def test_of_the_distribution_itself(self, sandbox, content, found):
        sandbox.distribution("1.0", core="def count():\n    return 1\n")
        file = sandbox.folder / f"{sandbox.name}-1.0.dist-info" / "METADATA"
        file.write_bytes(content.replace(b"{name}", sandbox.name.encode()))
        assert version(sandbox.name) is None
        assert found in str(find_installed(sandbox.name))
        sandbox.patch()
        activation = sandbox.activate()
        assert sandbox.core().count() == 2  # as in every build without a version that counts, the guard decides
        assert "is no release; the guard decided" in only(activation).reason

    @pytest.mark.parametrize("file", ["METADATA", "RECORD", "top_level.txt", "direct_url.json"])
    @pytest.mark.parametrize("content", [b"\xff", b"", None])
    def test_of_another_one(self, sandbox, file, content):
        package = sandbox.distribution("0.30.0", name=f"{sandbox.name}-cpu", package=sandbox.name)
        broken = sandbox.folder / "aaa_broken-1.0.dist-info" / file
        broken.parent.mkdir()
        if content is None:
            broken.mkdir()
        else:
            broken.write_bytes(content)
        assert str(find_installed(package)) == f"{sandbox.name}-cpu 0.30.0"

    def test_of_where_it_came_from(self, sandbox):
        sandbox.distribution("1.0", init="__version__ = '1.0+6de0c361'")
        (sandbox.folder / f"{sandbox.name}-1.0.dist-info" / "direct_url.json").write_bytes(b"\xff")
        __import__(sandbox.name)
        assert version(sandbox.name) == Version("1.0+6de0c361")

    def test_a_package_that_does_not_tell_its_version(self, sandbox):
        sandbox.distribution("1.0", init="def __getattr__(name):\n    raise RuntimeError(name)\n")
        __import__(sandbox.name)
        assert version(sandbox.name) == Version("1.0")
