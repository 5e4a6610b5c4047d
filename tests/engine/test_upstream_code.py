import importlib
import sys

import pytest

from nrl_patches.engine.upstream_code import ABSENT, digest, module_source

SOURCE = '''
"""About this."""
import os

if os.name == "posix":
    def chosen(x):
        return x

TABLE = {"a": [1, 2], "b": [3]}


class Model:
    limit: int = 3

    def forward(self, x):
        """Say what it does."""
        # And why.
        return x + 1


def build():
    table = {"a": ["built"]}
    table["c"] = table["a"].copy()
    return table
'''


@pytest.fixture
def place(tmp_path):
    """Write a module and return the digest of a place in it."""

    def digest_in(source, qualname):
        (tmp_path / "upstream").mkdir(exist_ok=True)
        (tmp_path / "upstream" / "__init__.py").write_text("raise ImportError('nobody may import this')\n")
        (tmp_path / "upstream" / "core.py").write_text(source)
        return digest(f"upstream.core:{qualname}" if qualname else "upstream.core", [str(tmp_path)])

    return digest_in


@pytest.mark.parametrize(
    "qualname", ["", "Model", "Model.forward", "chosen", "TABLE", "TABLE[b]", "build[a]", "build[c]"]
)
def test_a_place_is_found_without_an_import(place, qualname):
    assert len(place(SOURCE, qualname)) == 12
    assert "upstream" not in sys.modules


@pytest.mark.parametrize("qualname", ["Other", "Model.other", "forward", "TABLE[z]", "build[b]", "Model.forward.x"])
def test_what_is_not_there_is_absent(place, qualname):
    assert place(SOURCE, qualname) == ABSENT


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("# And why.", "# Or not.", ()),
        ("Say what it does.", "Say more.", ()),
        ("x + 1", "x + 2", ("", "Model", "Model.forward")),
        ("limit: int = 3", "limit: int = 4", ("", "Model")),
        ('"b": [3]', '"b": [4]', ("", "TABLE", "TABLE[b]")),
        ('["built"]', '["other"]', ("", "build", "build[a]")),
        ('table["a"].copy()', "[]", ("", "build", "build[c]")),
        ("        return x\n", "        return -x\n", ("", "chosen")),
    ],
)
def test_a_digest_changes_with_the_code_of_its_place_and_nothing_else(place, old, new, changed):
    places = ("", "Model", "Model.forward", "chosen", "TABLE", "TABLE[a]", "TABLE[b]", "build", "build[a]", "build[c]")
    before = {qualname: place(SOURCE, qualname) for qualname in places}
    after = {qualname: place(SOURCE.replace(old, new, 1), qualname) for qualname in places}
    assert {qualname for qualname in places if before[qualname] != after[qualname]} == set(changed)


def test_a_place_of_another_form_is_refused():
    with pytest.raises(ValueError, match="is no module:qualname"):
        digest("upstream core")


def test_code_without_source_or_that_cannot_be_parsed_is_absent(place):
    assert place("def (", "Model") == ABSENT
    assert digest("sys:exit") == ABSENT
    assert module_source("nothing_of_that_name.at_all") is None


def test_a_package_may_keep_its_folders_as_paths(place, tmp_path, monkeypatch):
    expected = place(SOURCE, "Model")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "upstream" / "__init__.py").write_text("import pathlib\n__path__[:] = map(pathlib.Path, __path__)\n")
    importlib.import_module("upstream")
    try:
        assert digest("upstream.core:Model") == expected
    finally:
        del sys.modules["upstream"]
