import sys
import types

import pytest
from packaging.version import Version

from nrl_patches.installed import find_installed


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
