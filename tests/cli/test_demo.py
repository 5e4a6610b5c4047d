"""``nrl-patches demo``: one small table of what is wrong and what is right."""

import re
from xml.etree import ElementTree as ET

import pytest
from package_copy import Copy
from standins import ROOT

import nrl_patches.cli.demo as module
from nrl_patches.engine.registry import load


@pytest.fixture
def copy(tmp_path):
    made = Copy(tmp_path)
    made.upstream()
    made.patch()
    return made


def demo(copy, *args):
    return copy.run("nrl_patches", "demo", *args, COLUMNS="100")


def test_it_shows_what_is_wrong_without_and_right_with_the_patches(copy):
    done = demo(copy)
    assert done.returncode == 0, done.stderr
    for words in ("A stand-in is off by one.", "standin.count, standin 1.0", "wrong", "right", "count 1", "count 2"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout


def test_a_patch_that_repairs_nothing_is_not_praised(copy):
    copy.patch(fix="return lambda *args: original(*args) + 0")
    done = demo(copy)
    assert done.returncode == 1
    assert "still wrong" in done.stdout


@pytest.mark.parametrize("args", [(), ("standin.count",)])
def test_where_nothing_is_needed_it_says_what_to_do(copy, args):
    copy.upstream("2.0")
    (copy.folder / "standin-1.0.dist-info" / "METADATA").unlink()
    (copy.folder / "standin-1.0.dist-info").rmdir()
    done = demo(copy, *args)
    assert done.returncode == 3
    assert "next step: `nrl-patches demo --install torch" in done.stderr


def test_no_more_than_three_and_of_different_subjects():
    class Patch:
        def __init__(self, name):
            self.id = name

    names = ["t.gemma_a", "t.gemma_b", "t.qwen_a", "v.dummy", "v.radio"]
    assert [patch.id for patch in module._varied([Patch(name) for name in names])] == [
        "t.gemma_a",
        "t.qwen_a",
        "v.dummy",
    ]


def test_a_throw_away_environment_is_made_and_deleted(monkeypatch):
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(module.venv, "create", lambda folder, **_: commands.append(("venv", folder)))
    monkeypatch.setattr(module.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    assert module._elsewhere(["x"], ["transformers==5.5.0"], 60.0) == 0
    (_, folder), install, run = commands
    assert install[0] == run[0] == f"{folder}/bin/python"
    assert install[-1] == "transformers==5.5.0"
    assert run[2:6] == ["-m", "nrl_patches", "demo", "x"]
    assert not module.Path(folder).exists()


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_no_id_is_cut(copy, columns):
    copy.patch("a_name_that_is_too_long_for_a_column_of_a_third", opt_out="NRL_DISABLE_LONG")
    shown = copy.run("nrl_patches", "demo", COLUMNS=str(columns)).stdout
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    left = "".join(line[: line.find("  ")] if "  " in line else line for line in shown.splitlines())
    assert "standin.a_name_that_is_too_long_for_a_column_of_a_third" in left.replace(" ", "")


def test_the_picture_in_readme_is_of_patches_that_there_are_and_loads_nothing():
    svg = (ROOT / "nrl_patches" / "docs" / "demo.svg").read_text(encoding="utf-8")
    texts = [element for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]
    said = [" ".join("".join(text.itertext()).split()) for text in texts]
    left = " ".join(words for words, text in zip(said, texts, strict=True) if text.get("x") == "0")
    assert "$ nrl-patches demo" in left
    shown = [patch for patch in load() if f"{patch.id}, transformers 5.5.0" in left]
    assert len(shown) == 3
    assert [patch.title for patch in shown if patch.title not in left] == []
    assert (said.count("wrong"), said.count("right")) == (3, 3)
    assert re.findall(r"url\((?!#)|href|@import|@font-face|https?://(?!www\.w3\.org/2000/svg)", svg) == []
