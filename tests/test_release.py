"""What a release needs: one version, the Pythons that CI runs, and a workflow that can be believed."""

import re
import runpy
import shlex

import click
import pytest
import yaml
from standins import ROOT

from nrl_patches import __version__
from nrl_patches.cli.main import main

differences = runpy.run_path(str(ROOT / ".ci" / "check_version.py"))["differences"]

PACKAGE = 'import x\n\n__version__ = "1.2.3"\n'
CHANGELOG = """# Changelog

Text.

## [Unreleased]

## [1.2.3] - 2026-12-01

### Added

- a: b.

## [1.2.2] - 2026-11-01
"""


def test_a_release_whose_names_agree():
    assert differences("v1.2.3", PACKAGE, CHANGELOG) == []


@pytest.mark.parametrize(
    ("tag", "package", "changelog", "said"),
    [
        ("v1.2.4", PACKAGE, CHANGELOG, ["__version__", "the newest heading"]),
        ("1.2.3", PACKAGE, CHANGELOG, ["__version__", "the newest heading"]),
        ("v1.2.3", PACKAGE.replace("1.2.3", "1.2.2"), CHANGELOG, ["__version__"]),
        ("v1.2.3", "", CHANGELOG, ["__version__"]),
        ("v1.2.3", PACKAGE, CHANGELOG.replace("## [1.2.3] - 2026-12-01", "### Changed"), ["Unreleased", "newest"]),
        ("v1.2.3", PACKAGE, CHANGELOG.replace(" - 2026-12-01", ""), ["the newest heading"]),
        ("v1.2.3", PACKAGE, CHANGELOG.replace("## [Unreleased]\n", "## [Unreleased]\n\n- c: d.\n"), ["Unreleased"]),
        ("v1.2.3", PACKAGE, CHANGELOG.replace("## [Unreleased]\n", ""), ["Unreleased", "newest"]),
        ("v1.2.3", PACKAGE, "", ["Unreleased", "missing"]),
    ],
)
def test_a_release_whose_names_differ(tag, package, changelog, said):
    found = differences(tag, package, changelog)
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def test_the_check_reads_the_files_of_this_checkout():
    package = (ROOT / "nrl_patches" / "__init__.py").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = differences(f"v{__version__}", package, changelog)
    assert not [sentence for sentence in found if "__version__" in sentence]


def test_the_classifiers_name_the_pythons_that_ci_runs():
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    (main_one,) = (step["with"]["python-version"] for step in ci["test"]["steps"] if "with" in step)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert named == sorted([*ci["engine"]["strategy"]["matrix"]["python"], main_one], key=lambda v: int(v[2:]))
    assert f'requires-python = ">={named[0]}"' in project


def test_the_workflow_publishes_tags_only_after_the_checks():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    assert workflow[True]["push"] == {"tags": ["v*"]}  # YAML 1.1 reads the key `on` as a boolean.
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert (publish["needs"], publish["if"]) == ("build", "github.ref_type == 'tag'")
    assert publish["permissions"] == {"id-token": "write"}
    assert workflow["permissions"] == {"contents": "read"}
    lines = [line for step in build["steps"] for line in step.get("run", "").splitlines()]
    assert 'python .ci/check_version.py "$GITHUB_REF_NAME"' in lines
    assert any("twine check --strict" in line for line in lines)
    ours = [shlex.split(line)[1:] for line in lines if line.startswith("bin/nrl-patches")]
    assert ["docs"] in ours
    for name, *words in ours:
        command = main.get_command(click.Context(main), name)
        assert name == "--version" or command.make_context(name, words)
