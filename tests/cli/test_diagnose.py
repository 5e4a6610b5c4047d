"""What the command refuses, and what it says where nothing can be run; both sides are in ``tests/diagnose``."""

import json

import click
import pytest
from click.testing import CliRunner

from nrl_patches.cli.diagnose import diagnose
from nrl_patches.diagnose.settings import DIAGNOSTICS, MODES, Settings


def run(*args):
    return CliRunner().invoke(diagnose, [*map(str, args)])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--engine-arg", "max_model_len"], "is not NAME=VALUE"),
        (["--engine-arg", "max-model-len=20"], "is not NAME=VALUE"),
        (["--only", "everything"], "is not one of 'agreement'"),
        (["--batch", "0"], "is not in the range x>=1"),
        (["--length", "3"], "is not in the range x>=4"),
        (["--top-p", "0"], "is not in the range 0<x<=1"),
        ([], "Missing argument 'MODEL'"),
    ],
)
def test_misuse_is_refused(args, said, tmp_path):
    done = run(*args, *(["model", "--output", tmp_path] if args else []))
    assert done.exit_code == 2
    assert said in done.output
    assert not list(tmp_path.iterdir())


def test_where_a_side_is_missing_everything_says_so(tmp_path):
    done = run("acme/model", "--output", tmp_path, "--trainer-python", tmp_path / "no-python")
    assert done.exit_code == 3, done.output
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {found["diagnostic"] for found in report["findings"]} == set(DIAGNOSTICS)
    assert {found["verdict"] for found in report["findings"]} == {"not-run"}
    assert all("no-python" in found["reason"] for found in report["findings"])
    assert "INCOMPLETE: acme/model" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_run(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = run("acme/model", "--output", file)
    assert done.exit_code == 3
    assert "expected a writable folder" in done.output


def test_every_setting_has_an_option_and_the_same_default():
    known = vars(Settings("acme/model"))
    options = {option.name: option for option in diagnose.params if isinstance(option, click.Option)}
    others = {"output", "releases", "paths", "releases_folder"}
    assert options.keys() - others == known.keys() - {"model", "engine_paths"}
    given = diagnose.make_context("diagnose", ["acme/model"]).params
    for name in options.keys() - others:
        if not options[name].multiple:
            assert given[name] == known[name], name


def test_modes_and_diagnostics_are_on_the_page(request):
    page = (request.config.rootpath / "nrl_patches" / "docs" / "diagnose.md").read_text(encoding="utf-8")
    for name in DIAGNOSTICS:
        assert f"\n### {name}\n" in page
    for name in MODES:
        assert f"\n| `{name}` |" in page
