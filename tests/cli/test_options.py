"""What the command refuses before it has done anything, and what becomes of a report that cannot be written."""

import json
import os

import click
import pytest
from click.testing import CliRunner

from nrl_patches.cli import main as cli
from nrl_patches.cli import tripwires as subcommand
from nrl_patches.cli.options import check_places
from nrl_patches.tripwires.run import Tripwire, Verdict


@pytest.fixture
def ran(monkeypatch):
    """The runs of the tripwires; in fact none takes place."""
    runs = []

    def run_tripwires(_patches, *, timeout, **_):
        runs.append(timeout)
        return [Tripwire("a.b", Verdict.NEEDED, "it is there", "", "a<2", {"a": "a 1"}, ("https://x",), "b.py")]

    monkeypatch.setattr(subcommand, "run_tripwires", run_tripwires)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return runs


def tripwires(*args, **environ):
    return CliRunner().invoke(cli.main, ["tripwires", *map(str, args)], env=environ)


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "file")
    return tmp_path


UNFIT = {
    "missing/report": "no folder ",
    "folder": "a folder",
    "": "a folder",
    "file/report": "Not a directory",
    "dangling": "no folder ",
    "x" * 300: "File name too long",
    "/proc/self/report": "No such file or directory",
}


@pytest.mark.parametrize("place", UNFIT)
@pytest.mark.parametrize("variable", [False, True], ids=["--output", "GITHUB_STEP_SUMMARY"])
def test_a_place_where_no_report_can_be_written_is_refused_before_the_first_probe(ran, places, place, variable):
    if variable and not place:
        pytest.skip("an empty variable is none")
    args = ("--format", "github") if variable else ("--format", "json", "--output", place)
    environ = {"GITHUB_STEP_SUMMARY": place} if variable else {}
    done = tripwires(*args, **environ)
    said = " ".join(done.output.replace("│", " ").split())
    assert (done.exit_code, ran) == (2, []), said
    assert UNFIT[place] in said
    assert "next step: " in said
    assert {file.name for file in places.iterdir()} == {"dangling", "file", "folder"}


def test_two_reports_in_one_file_are_refused(ran, places):
    done = tripwires("--format", "json", "--format", "text", "--output", "one", "--output", places / "one")
    assert (done.exit_code, ran) == (2, [])
    assert "another report" in done.output


def test_every_format_goes_to_its_place_and_the_check_leaves_nothing_behind(ran, places):
    check_places([("new", "--output"), ("file", "--output"), ("/dev/null", "--output"), ("/dev/null", "--output")])
    assert (places / "file").read_text() == "kept"
    assert not (places / "new").exists()
    done = tripwires("--format", "json", "--output", "file")
    assert (done.exit_code, len(ran)) == (0, 1)
    assert json.loads((places / "file").read_text())["passed"]


def test_the_reading_end_of_a_pipe_does_not_see_the_check(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(tmp_path / "fifo", os.O_WRONLY)
    check_places([(str(tmp_path / "fifo"), "--output")])
    with pytest.raises(BlockingIOError):  # At the end of a pipe there would be nothing to wait for.
        os.read(reading, 1)
    os.close(writing)
    os.close(reading)


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize("summary", [False, True])
def test_a_report_that_cannot_be_written_after_all_is_printed(summary):
    args = ("--format", "github") if summary else ("--format", "text", "--output", "/dev/full")
    done = tripwires(*args, **{"GITHUB_STEP_SUMMARY": "/dev/full"} if summary else {})
    assert done.exit_code == 3
    assert "/dev/full: expected a report to be written; found [Errno 28]" in done.stderr
    assert ("**PASSED: 1 tripwires" if summary else "PASSED: 1 tripwires") in done.stdout


SECONDS = ["-1", "0", "nan", "inf", "-inf", "1e300", "soon", ""]


@pytest.mark.parametrize("value", SECONDS)
@pytest.mark.parametrize("command", ["tripwires", "matrix"])
def test_what_is_no_time_to_wait_is_refused(ran, tmp_path, monkeypatch, command, value):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.main, [command, f"--timeout={value}"])
    assert (done.exit_code, ran, list(tmp_path.iterdir())) == (2, [], [])
    assert "expected seconds above 0" in " ".join(done.output.split())


def test_a_time_to_wait_is_passed_on(ran):
    assert tripwires("--timeout", "0.5").exit_code == 0
    assert ran == [0.5]


def test_an_interrupt_and_an_error_of_ours_are_no_answer(monkeypatch):
    for error, code in ((KeyboardInterrupt, 130), (LookupError, 3), (click.UsageError("x"), 2)):

        def raising(*_args, error=error, **_kwargs):
            raise error

        monkeypatch.setattr(subcommand, "run_tripwires", raising)
        assert tripwires().exit_code == code
