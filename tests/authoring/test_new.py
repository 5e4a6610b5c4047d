"""The path of CONTRIBUTING, from the first command to a green `check`, and what `check` explains on the way."""

import re

import pytest
from package_copy import Copy
from standins import ROOT

ID = "standin.count_off_by_one"
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")

PROBE = """    from standin.core import count

    return Observation(count() != 2, {"count": count()})
"""
TODO = '    raise NotImplementedError("run what goes wrong, and return Observation(present=…, evidence={…: …})")\n'


def commands():
    """The commands that the guide shows, without the program's name."""
    return [line.split()[1:] for line in re.findall(r"^ *(nrl-patches .*)$", GUIDE, re.MULTILINE)]


@pytest.fixture
def checkout(tmp_path):
    copy = Copy(tmp_path)
    copy.upstream()
    copy.write("pyproject.toml", '[project]\nname = "nrl-patches"\n')
    copy.write("CHANGELOG.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    copy.file = tmp_path / "nrl_patches" / "patches" / "standin" / "count_off_by_one.py"
    return copy


def run(copy, args):
    return copy.run("nrl_patches", *args)


def replace(copy, old, new):
    text = copy.file.read_text(encoding="utf-8")
    assert old in text
    copy.file.write_text(text.replace(old, new), encoding="utf-8")


def test_the_guide_leads_to_a_green_check(checkout):
    new, check = commands()
    done = run(checkout, new)
    assert done.returncode == 0, done.stderr
    assert "1. write the docstring, the probe and the fix in" in done.stdout
    assert f"- {ID}: " in (checkout.folder / "CHANGELOG.md").read_text()
    table = (checkout.folder / "nrl_patches" / "docs" / "patches.md").read_text()
    assert f"| `{ID}` | what goes wrong | see `affected` |" in table
    environment = (checkout.folder / "nrl_patches" / "docs" / "environment.md").read_text()
    assert "| `NRL_DISABLE_COUNT_OFF_BY_ONE_PATCH` | `1` switches off" in environment
    assert 'affected="standin==1.0"' in checkout.file.read_text()

    done = run(checkout, check)
    assert done.returncode == 1
    assert "the probe is not written yet" in done.stdout
    replace(checkout, TODO, PROBE)
    done = run(checkout, check)
    assert done.returncode == 1
    assert "FAILED  with the patch, the probe does not show the defect" in done.stdout
    replace(checkout, "return original(*args, **kwargs)", "return original(*args, **kwargs) + 1")
    done = run(checkout, check)
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout
    assert "ok      standin.core:count is undone and applied again" in done.stdout
    assert done.stdout.endswith(
        f"nothing is wrong here; `nrl-patches matrix --patch {ID}` measures the other releases\n"
    )


def test_what_was_not_applied_is_not_blamed_for_the_defect(written):
    replace(written, 'parameters=""', 'parameters="x"')
    done = run(written, ["check", ID])
    assert done.returncode == 1
    assert done.stdout.count("FAILED") == 1
    said = run(written, ["tripwires", "standin.*"])
    assert said.returncode == 1
    assert f"next step: `nrl-patches check {ID}` says more: " in said.stdout
    assert "has no parameter x" in said.stdout


@pytest.mark.parametrize(
    ("edit", "failed"),
    [
        ("", ""),
        ("return 2", "`old` of an `Edit` is whole lines of the target"),
    ],
)
def test_a_rewrite_is_written_and_checked_too(checkout, edit, failed):
    assert run(checkout, [*commands()[0], "--rewrite"]).returncode == 0
    assert "the probe is not written yet" in run(checkout, ["check", ID]).stdout
    replace(checkout, TODO, PROBE)
    replace(checkout, "whole lines of the target, at any indentation, which are there exactly once", edit or "return 1")
    replace(checkout, "the lines that take their place", "return 2")
    done = run(checkout, ["check", ID])
    assert done.returncode == int(bool(failed)), done.stdout
    assert failed in done.stdout


@pytest.fixture
def written(checkout):
    run(checkout, commands()[0])
    replace(checkout, TODO, PROBE)
    replace(checkout, "return original(*args, **kwargs)", "return original(*args, **kwargs) + 1")
    return checkout


@pytest.mark.parametrize(
    ("old", "new", "failed", "said"),
    [
        (PROBE, "    from standin.core import count\n\n    return count() != 2\n", "", ""),  # A boolean is enough.
        (PROBE, "    count = 1\n", "without the patch, the probe shows the defect", "the probe returns nothing"),
        (PROBE, "    return Observation(False)\n", "without the patch, the probe shows the defect", "not there"),
        (
            "def repair(original: Callable[..., Any]) -> Callable[..., Any]:",
            "def repair(a, b) -> Any:",
            "with the patch, it is applied",
            "takes the original and returns the function that is called in its place",
        ),
        (
            "    return repaired\n",
            "",
            "with the patch, it is applied",
            "returns the function that is called in its place",
        ),
        ('parameters=""', 'parameters="x"', "with the patch, it is applied", "the guard objects to the installed code"),
        ("standin.core:count", "standin.core:amount", "with the patch, it is applied", "the target has another name"),
        ("Fix: what", "Fixed: what", "the file is loaded", "docstring: lacks Fix"),
        ('opt_out="NRL_DISABLE', 'opt_out="DISABLE', "the file is loaded", "opt_out: needs"),
        ("standin==1.0", "standin==2.0", "the installed release is affected", "standin 1.0 is not in standin==2.0"),
        ('"standin==1.0"', '"standin"', "the file is loaded", "affected: "),
    ],
)
def test_check_explains_what_is_wrong_in_the_words_of_the_author(written, old, new, failed, said):
    replace(written, old, new)
    done = run(written, ["check", ID])
    assert done.returncode == int(bool(failed)), done.stdout
    assert f"FAILED  {failed}" in done.stdout or not failed
    assert said in done.stdout


def test_all_that_is_wrong_with_the_fields_is_said_at_once(written):
    replace(written, "standin==1.0", "standin")
    replace(written, 'opt_out="NRL_DISABLE', 'opt_out="DISABLE')
    replace(written, "https://example.org", "example.org")
    said = run(written, ["check", ID]).stdout
    assert all(field in said for field in ("affected: ", "opt_out: ", "upstream: "))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ID": "count"}, "the id needs the form"),
        ({"--target": "standin.core"}, "--target needs the form"),
        ({"--target": "other.core:count"}, "the id has to begin with other"),
        ({"--target": "standin.core:coun"}, "standin.core does not define coun; did you mean count?"),
        ({"--upstream": "issue 1"}, "--upstream needs an https link"),
        ({"ID": "nothing.count"}, "--affected is needed"),
        ({"--package": "no.package"}, "no package 'no.package' on the path"),
    ],
)
def test_new_writes_nothing_if_something_cannot_be_right(checkout, changes, said):
    given = {"ID": ID, "--target": "standin.core:count", "--upstream": "https://example.org/1"} | changes
    name = given.pop("ID")
    done = run(checkout, ["new", name, *(word for pair in given.items() for word in pair)])
    assert done.returncode == 2
    assert said in done.stderr
    assert not checkout.file.exists()


def test_a_package_of_ones_own_needs_nothing_of_this_checkout(checkout):
    checkout.write("acme_patches/__init__.py", "")
    checkout.write("acme_patches-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme-patches\nVersion: 1\n")
    checkout.write("acme_patches-1.dist-info/entry_points.txt", "[nrl_patches.patches]\nstandin = acme_patches\n")
    pages = [checkout.folder / "nrl_patches" / "docs" / name for name in ("patches.md", "environment.md")]
    before = [page.read_text() for page in pages]
    done = run(checkout, [*commands()[0], "--package", "acme_patches"])
    assert done.returncode == 0, done.stderr
    checkout.file = checkout.folder / "acme_patches" / "standin" / "count_off_by_one.py"
    replace(checkout, TODO, PROBE)
    replace(checkout, "return original(*args, **kwargs)", "return original(*args, **kwargs) + 1")
    done = run(checkout, ["check", f"acme_patches/{ID}"])
    assert done.returncode == 0, done.stdout
    assert 'opt_out="ACME_PATCHES_DISABLE_COUNT_OFF_BY_ONE"' in checkout.file.read_text()
    assert [page.read_text() for page in pages] == before
