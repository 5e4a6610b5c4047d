"""Ids on the command line: the nearest one for a typo, completion in the shell, and `-h` beside `--help`."""

import json
import os
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from package_copy import Copy
from standins import ROOT, run

from nrl_patches.cli import main as cli
from nrl_patches.cli.ids import nearest

COMMANDS = cli.main.list_commands(click.Context(cli.main))
TAKING = {
    "audit": ["--ignore"],
    "check": [],
    "demo": [],
    "explain": [],
    "matrix": ["--patch"],
    "probe": [],
    "tripwires": [],
}
"""The commands that take an id of what there is, with the option before it."""

IMPORTED = "import sys\nprint('upstream was imported', file=sys.stderr)\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    made = Copy(tmp_path_factory.mktemp("copy"))
    made.upstream(core=IMPORTED)
    made.write("standin/__init__.py", IMPORTED)
    made.patch()
    made.patch("counts_again", opt_out="NRL_DISABLE_AGAIN")
    return made


def completed(copy, *words):
    """Ask for the last word as bash does."""
    line = " ".join(("nrl-patches", *words))
    done = copy.run("nrl_patches", COMP_WORDS=line, COMP_CWORD=str(len(words)), _NRL_PATCHES_COMPLETE="bash_complete")
    assert (done.returncode, done.stderr) == (0, "")
    return [found.partition(",")[2] for found in done.stdout.split()]


def test_every_parameter_that_takes_an_id_is_tested_here():
    context = click.Context(cli.main)
    found = {
        name: [option for option in parameter.opts if option.startswith("-")]
        for name in COMMANDS
        for parameter in cli.main.get_command(context, name).params
        if (parameter.metavar or "").strip("[].") == "ID"
    }
    del found["new"]  # Its id is one that there is not yet.
    assert found == TAKING


@pytest.mark.parametrize("name", TAKING)
def test_an_id_is_completed_and_no_upstream_package_is_imported(copy, name):
    assert completed(copy, name, *TAKING[name], "standin.c") == ["standin.count", "standin.counts_again"]


def test_a_part_of_an_id_is_completed_where_no_id_begins_with_it(copy):
    assert completed(copy, "explain", "again") == ["standin.counts_again"]
    assert completed(copy, "explain", "nothing") == []


def test_an_id_is_not_offered_twice(copy):
    assert completed(copy, "tripwires", "standin.count", "standin.") == ["standin.counts_again"]


def test_bash_completes_an_id_by_the_printed_script(copy, tmp_path):
    program = tmp_path / "nrl-patches"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nrl_patches "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(nrl-patches completion bash)"
        COMP_WORDS=(nrl-patches explain standin.counts_) COMP_CWORD=2
        _nrl_patches_completion nrl-patches
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environ = copy.environ(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        [shutil.which("bash"), "--norc", "-c", script],
        env=environ,
        cwd=copy.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("standin.counts_again\n", "")


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no-files")]
)
def test_there_is_a_script_for_each_shell(shell, word):
    named = CliRunner().invoke(cli.main, ["completion", shell])
    by_variable = CliRunner().invoke(cli.main, ["completion"], env={"SHELL": f"/usr/bin/{shell}"})
    assert named.exit_code == 0
    assert word in named.stdout
    assert by_variable.stdout == named.stdout


def test_a_shell_that_cannot_complete_is_refused():
    done = CliRunner().invoke(cli.main, ["completion"], env={"SHELL": "/bin/dash"})
    assert done.exit_code == 2
    assert "expected bash, zsh, fish; found 'dash' in the variable SHELL" in " ".join(done.output.split())


@pytest.mark.parametrize("name", TAKING)
def test_an_id_with_a_typo_is_answered_with_the_one_that_was_meant(name):
    done = CliRunner().invoke(cli.main, [name, *TAKING[name], "vllm.radio_layerscale"])
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "'vllm.radio_layerscale' is not the id of a patch; did you mean vllm.radio_layer_scale?" in said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("vllm.radio_layer_scal", "did you mean vllm.radio_layer_scale?"),
        ("radio", "did you mean vllm.radio_layer_scale?"),
        ("gemma_fsdp2", "did you mean t.gemma_sharing_fsdp2?"),
        ("gemma", "did you mean t.gemma_sharing_a, t.gemma_sharing_b or t.gemma_sharing_fsdp2?"),
        ("qwen", ""),
        ("", ""),
        ("...", ""),
    ],
)
def test_the_nearest_ids(typed, said):
    assert (
        nearest(typed, ["vllm.radio_layer_scale", "t.gemma_sharing_a", "t.gemma_sharing_b", "t.gemma_sharing_fsdp2"])
        == said
    )


@pytest.mark.parametrize(("name", "lacks"), [("check", "patch"), ("demo", "patch")])
def test_an_id_of_what_cannot_be_used_there_is_known_all_the_same(name, lacks):
    done = CliRunner().invoke(cli.main, [name, "vllm.v1_switch"])
    assert done.exit_code == 2
    assert f"vllm.v1_switch has no {lacks}; see `nrl-patches explain vllm.v1_switch`" in " ".join(done.output.split())


def test_h_is_help():
    # In a process of its own: click keeps the help option with which a command was first run, be it without its group.
    code = f"""
        import json
        from click.testing import CliRunner
        from nrl_patches.cli.main import main
        runs = [[*names, option] for names in ([], *([name] for name in {COMMANDS})) for option in ("-h", "--help")]
        print(json.dumps([[done.exit_code, done.output] for done in map(lambda r: CliRunner().invoke(main, r), runs)]))
    """
    done = run(code)
    told = json.loads(done.stdout)
    assert told[::2] == told[1::2]
    assert len(told) == 2 * (1 + len(COMMANDS))
    assert [said for code, said in told if code or not said.startswith("Usage: ")] == []


def test_the_h_of_a_program_that_is_run_is_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "nrl_patches", "run", "echo", "-h"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NRL_PATCHES": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "-h\n"
