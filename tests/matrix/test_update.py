"""``nrl-patches matrix --update``: new ranges and new evidence in a checkout, and nowhere else."""

import ast
import importlib
import inspect

import pytest
from matrix.local_index import serve
from matrix.test_matrix_command import ID, Bench
from package_copy import OFF_BY_ONE, RIGHT

import nrl_patches
from nrl_patches.engine.affected import Affected
from nrl_patches.engine.registry import load, load_defects
from nrl_patches.matrix import update
from nrl_patches.matrix.evidence import COMMITTED, Evidence
from nrl_patches.matrix.fingerprint import fingerprint

PATCHES = load().patches
DEFECT = "vllm.v1_switch"
TABLE = "nrl_patches/docs/patches.md"


@pytest.fixture
def checkout(tmp_path):
    made = Bench(tmp_path)
    made.write("pyproject.toml", '[project]\nname = "nrl-patches"\n')
    made.write(TABLE, f"| id | defect | releases |\n|---|---|---|\n| `{ID}` | off by one | standin |\n")
    (tmp_path / "nrl_patches" / "matrix" / "data").mkdir()
    with serve(made.index) as made.address:
        yield made


def row(checkout):
    return (checkout.folder / TABLE).read_text().splitlines()[-1]


def test_a_new_release_with_the_defect_widens_the_range_and_the_next_run_has_nothing_to_say(checkout):
    checkout.index.add("1.6", OFF_BY_ONE)
    checkout.declare("standin>=1.2,<1.5")
    done = checkout.matrix("--update")
    assert done.returncode == 1
    assert f"{ID}: now standin>=1.2,<1.5 or standin>=1.6,<=1.6; run this again" in done.stderr
    done = checkout.matrix("--update")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"exact: {ID}: standin>=1.2,<1.5 or standin>=1.6,<=1.6: ")
    expected = "standin 1.2 to 1.4 (gone in 1.5), standin 1.6 (the newest measured)"
    assert row(checkout) == f"| `{ID}` | off by one | {expected} |"
    # And it was the newest only until the fix came out.
    checkout.index.add("1.7", RIGHT)
    assert checkout.matrix("--update").returncode == 1
    assert checkout.matrix("--update").returncode == 0
    assert row(checkout).endswith("standin 1.6 (gone in 1.7) |")
    data = checkout.folder / "nrl_patches" / "matrix" / "data"
    assert {file.name for file in data.iterdir()} == {"matrix.json", "ranges.svg"}
    assert '"standin.core:count": {"1.1": "' in (data / "matrix.json").read_text()


def test_an_installation_is_not_changed(checkout):
    (checkout.folder / "pyproject.toml").unlink()
    before = {file: file.read_bytes() for file in checkout.folder.glob("nrl_patches/**/*.py")}
    done = checkout.matrix("--update", "--offline")
    assert done.returncode == 3
    assert "expected a checkout of nrl-patches; found an installation" in done.stderr
    assert before == {file: file.read_bytes() for file in checkout.folder.glob("nrl_patches/**/*.py")}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
@pytest.mark.parametrize("suggestion", [("one>=1,<2",), ("one>=1,<2", "one>=3,<=3.1"), ("one>=1,<2 & two>=3,<4",) * 4])
def test_the_range_of_every_patch_file_can_be_replaced_and_nothing_else_changes(patch, suggestion):
    source = inspect.getsource(importlib.import_module(patch.module))
    made = update._with_range(source, suggestion)
    keywords = [k for node in ast.walk(ast.parse(made)) if isinstance(node, ast.Call) for k in node.keywords]
    (declared,) = (ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg == "affected")
    assert str(Affected(declared)) == str(Affected(suggestion))
    kept = [line for line in source.splitlines() if line not in inspect.cleandoc(str(patch.affected))]
    assert set(kept) - set(made.splitlines()) <= {line for line in kept if "affected=" in line}
    assert len(made.splitlines()) >= len(source.splitlines())
    assert all(len(line) <= 120 for line in made.splitlines())


def test_patches_and_known_defects_have_their_rows_in_different_files(tmp_path):
    declared = {TABLE: next(iter(PATCHES.values())), "nrl_patches/docs/limits.md": load_defects()[0][DEFECT]}
    for name, subject in declared.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"| `{subject.id}` | what goes wrong | see `affected` |\n")
    evidence = Evidence.read(COMMITTED)
    update.write_tables(declared.values(), evidence, tmp_path)
    for name, subject in declared.items():
        expected = f"| `{subject.id}` | what goes wrong | {update.in_words(subject, evidence)} |\n"
        assert (tmp_path / name).read_text() == expected


def test_this_is_a_checkout():
    assert (update.checkout() / "nrl_patches" / "__init__.py").samefile(nrl_patches.__file__)
    assert all(fingerprint(patch) for patch in PATCHES.values())
