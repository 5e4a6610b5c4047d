"""Tripwires on deliberately good and bad patches, through the real command in real processes."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import package_copy
import pytest
import yaml
from package_copy import OFF_BY_ONE, RIGHT
from standins import ROOT

from nrl_patches.engine.registry import load, load_defects
from nrl_patches.tripwires.run import PASSING, Verdict


class Copy(package_copy.Copy):
    """A copy of this package, and what its command says."""

    def tripwires(self, *args, **environ):
        return self.run("nrl_patches", "tripwires", *args, **environ)

    def outcome(self, *args, **environ):
        """Return the only tripwire and the exit code."""
        done = self.tripwires("--format", "json", *args, **environ)
        assert done.stdout, done.stderr
        report = json.loads(done.stdout)
        (tripwire,) = report["tripwires"]
        assert report["passed"] == (done.returncode == 0)
        return tripwire, done.returncode


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def test_needed(copy):
    copy.upstream()
    copy.patch()
    tripwire, code = copy.outcome()
    assert (tripwire["verdict"], code) == ("needed", 0)
    assert tripwire["off"]["evidence"] == {"count": 1}
    assert tripwire["on"]["evidence"] == {"count": 2}
    assert (tripwire["off"]["status"], tripwire["on"]["status"]) == ("disabled", "applied")
    assert tripwire["installed"] == {"standin": "standin 1.0"}


def test_not_affected(copy):
    copy.upstream("2.0", RIGHT)
    copy.patch()
    assert copy.outcome()[0]["verdict"] == "not affected"


def test_not_installed(copy):
    copy.patch()
    tripwire, code = copy.outcome()
    assert (tripwire["verdict"], code, tripwire["off"]) == ("not installed", 0, None)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (False, "standin.count: expected its distributions to be installed; found no standin in "),
        (True, "standin.count: expected its probe to return; found SystemExit: 0; next step: "),
    ],
)
def test_a_probe_that_has_no_answer_does_not_exit_as_one_that_has(copy, installed, said):
    if installed:
        copy.upstream()
    copy.patch(probe="raise SystemExit(0)")
    done = copy.run("nrl_patches", "probe", "standin.count")
    assert (done.returncode, done.stdout) == (3, "")
    assert said in done.stderr


def test_a_pair_of_which_one_is_missing_and_the_other_excluded(copy):
    copy.upstream("2.0", RIGHT)
    copy.patch(affected="standin<2 & companion<1", probe="import companion\nreturn Observation(True)")
    tripwire, code = copy.outcome()
    assert (tripwire["verdict"], tripwire["sentence"], code) == ("not installed", "companion is not installed", 0)


@pytest.mark.parametrize(
    ("version", "core", "fields", "verdict", "said"),
    [
        ("1.5", RIGHT, {}, "obsolete", "upstream fixed it: take this release out of `affected` (standin<2)"),
        ("2.0", OFF_BY_ONE, {}, "uncovered", "widen `affected` (standin<2)"),
        ("1.0", OFF_BY_ONE, {"fix": "return lambda: original()"}, "ineffective", "(applied): count 1"),
        ("1.0", OFF_BY_ONE, {"target": "standin.core:moved"}, "ineffective", "(drifted)"),
        ("1.0", OFF_BY_ONE, {"guard": "lambda f: 'is different'"}, "ineffective", "(drifted)"),
        ("1.0", OFF_BY_ONE, {"fix": "raise LookupError"}, "ineffective", "(failed)"),
        ("1.0", RIGHT, {"probe": "return Observation(True)"}, "ineffective", "(pending)"),
        ("2.0", RIGHT, {"probe": "return Observation(True)"}, "uncovered", "no range covers it"),
        ("1.0", OFF_BY_ONE, {"probe": "raise KeyError('shape')"}, "error", "KeyError: 'shape'"),
        ("1.0", OFF_BY_ONE, {"probe": "return 1"}, "error", "must return an Observation, not int"),
        ("1.0", OFF_BY_ONE, {"probe": "import os\nos._exit(0)"}, "error", "exited with 0 without an answer"),
        ("1.0", OFF_BY_ONE, {"probe": "import ctypes\nctypes.string_at(0)"}, "error", "was killed by SIGSEGV"),
        ("1.0", OFF_BY_ONE, {"probe": "x = []\nwhile True: x.append(bytearray(1 << 27))"}, "error", "MemoryError"),
        ("1.0", "raise ImportError('no operators')", {}, "error", "no operators"),
    ],
)
def test_bad_patches_get_the_verdict_that_fits(copy, version, core, fields, verdict, said):
    copy.upstream(version, core)
    copy.patch(**fields)
    if "MemoryError" in said:
        limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        copy.patch(probe=limit + fields["probe"])
    tripwire, code = copy.outcome()
    assert (tripwire["verdict"], code) == (verdict, 1)
    assert said in tripwire["sentence"] + tripwire["next_step"]
    assert tripwire["next_step"]


def test_a_hanging_probe_and_what_it_started_are_killed(copy):
    copy.upstream()
    copy.patch(
        probe="""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("started", child.pid, flush=True)
        time.sleep(600)
        """
    )
    tripwire, code = copy.outcome("--timeout", "4")
    assert (tripwire["verdict"], code) == ("error", 1)
    assert "took longer than 4 s and was killed" in tripwire["sentence"]
    pid = re.search(r"started (\d+)", tripwire["sentence"])[1]
    with contextlib.suppress(FileNotFoundError):  # Nobody but init may be there to bury it.
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize(
    ("core", "guard", "verdict"),
    [
        (OFF_BY_ONE, "None", "needed"),
        (RIGHT, "'counts right'", "not affected"),
        (RIGHT, "None", "obsolete"),
        (OFF_BY_ONE, "'is different'", "uncovered"),
    ],
)
def test_between_releases_the_guard_stands_for_the_range(copy, core, guard, verdict):
    copy.upstream("2.0.dev1", core)
    copy.patch(guard=f"lambda original: {guard}")
    assert copy.outcome()[0]["verdict"] == verdict


def test_the_users_own_settings_do_not_colour_the_sides(copy):
    copy.upstream()
    copy.patch()
    assert copy.outcome(NRL_DISABLE_COUNT="1", NRL_PATCHES_DISABLE="*")[0]["verdict"] == "needed"


def test_other_patches_do_not_colour_the_sides(copy):
    copy.upstream()
    copy.patch()
    copy.patch("other", affected="standin<2", opt_out="NRL_DISABLE_OTHER", fix="return lambda: original() + 40")
    done = copy.tripwires("--format", "json")
    verdicts = {t["id"]: t["verdict"] for t in json.loads(done.stdout)["tripwires"]}
    assert verdicts == {"standin.count": "needed", "standin.other": "ineffective"}


def test_what_a_probe_prints_is_no_part_of_its_answer(copy):
    copy.upstream()
    # The answer itself may have any length too.
    counts = textwrap.dedent(package_copy.COUNTS).replace("{", '{"long": "x" * 200_000, ')
    copy.patch(probe='print("{" * 100_000)\n' + counts)
    assert copy.outcome("--timeout", "20")[0]["verdict"] == "needed"


def test_allowed_verdicts(copy):
    copy.upstream("1.5", RIGHT)
    copy.patch()
    assert copy.tripwires().returncode == 1
    assert copy.tripwires("--allow", "obsolete").returncode == 0
    assert copy.tripwires("--allow", "uncovered").returncode == 1
    assert copy.tripwires("--allow", "needed").returncode == 2


def test_a_patch_file_that_cannot_be_loaded_fails_the_run(copy):
    copy.upstream()
    copy.patch()
    copy.write("nrl_patches/patches/standin/broken.py", "1/0")
    done = copy.tripwires("--format", "json")
    assert done.returncode == 1
    assert "standin.broken: expected a patch file; found that it cannot be loaded: " in done.stderr
    assert "broken.py: ZeroDivisionError: division by zero" in done.stderr


TOMBSTONE = "retired in 0.2.0: transformers 5.6.0 is the oldest supported release"


@pytest.mark.parametrize(
    "command",
    [
        ("nrl_patches", "explain", "standin.count"),
        ("nrl_patches", "probe", "standin.count"),
        ("nrl_patches", "tripwires", "standin.count"),
        ("nrl_patches", "list"),
    ],
)
def test_a_retired_patch_is_a_deleted_file_and_a_tombstone(copy, command):
    registry = copy.folder / "nrl_patches" / "engine" / "registry.py"
    declared = "RETIRED: Mapping[str, str] = {}"
    assert declared in registry.read_text()
    registry.write_text(registry.read_text().replace(declared, f"RETIRED = {{'standin.count': {TOMBSTONE!r}}}"))
    done = copy.run(*command, NRL_PATCHES_DISABLE="standin.count")
    # Click folds its messages to the width of the terminal.
    assert TOMBSTONE in " ".join(done.stderr.replace("│", " ").split()), done.stderr


def test_progress_on_a_terminal(copy):
    copy.upstream()
    copy.patch()
    ours, theirs = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(copy.folder), "TERM": "xterm"}
    command = [sys.executable, "-m", "nrl_patches", "tripwires"]
    done = subprocess.run(
        command, env=env, cwd=copy.folder, stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=True, text=True
    )
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "1/1" in shown
    assert done.stdout.startswith("PASSED: 1 tripwires (1 needed)")


@pytest.fixture
def two(copy):
    """One needed, one obsolete."""
    copy.upstream()
    copy.patch()
    copy.patch("gone", opt_out="NRL_DISABLE_GONE", probe="return Observation(False, {'note': 'a|b, 100%'})")
    return copy


class TestFormats:
    def test_text(self, two):
        done = two.tripwires()
        lines = done.stdout.splitlines()
        assert lines[0] == "FAILED: 1 of 2 tripwires (1 needed, 1 obsolete)"
        assert re.fullmatch(r"needed +standin\.count +\d+\.\d s", lines[2])
        assert sum(line.startswith("  next step: ") for line in lines) == 1
        assert done.stderr.splitlines()[0].startswith("standin.count: needed (")

    def test_json_follows_the_published_schema(self, two):
        report = json.loads(two.tripwires("--format", "json").stdout)
        schema = json.loads((ROOT / "nrl_patches" / "tripwires" / "schemas" / "tripwires-1.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(report, schema)
        assert set(schema["$defs"]["verdict"]["enum"]) == {str(verdict) for verdict in Verdict}
        assert report["passed"] is False

    def test_junit(self, two):
        suite = ET.fromstring(two.tripwires("--format", "junit").stdout)
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
        failure = suite.find("testcase[@name='standin.gone']/failure")
        assert failure.get("type") == "obsolete"

    def test_markdown(self, two):
        lines = two.tripwires("--format", "markdown").stdout.splitlines()
        assert lines[0] == "**FAILED: 1 of 2 tripwires (1 needed, 1 obsolete)**"
        assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines[2:])

    def test_github_annotates_and_appends_the_summary(self, two, tmp_path):
        summary = tmp_path / "summary.md"
        summary.write_text("before\n")
        done = two.tripwires("--format", "github", GITHUB_STEP_SUMMARY=str(summary))
        (annotation,) = [line for line in done.stdout.splitlines() if line.startswith("::")]
        assert annotation.startswith("::error title=standin.gone%3A obsolete::declared as affected")
        assert summary.read_text().startswith("before\n**FAILED: 1 of 2 tripwires")

    def test_several_at_once(self, two, tmp_path):
        report = tmp_path / "report.json"
        done = two.tripwires("--format", "json", "--format", "text", "--output", str(report))
        assert json.loads(report.read_text())["schema"] == 1
        assert done.stdout.startswith("FAILED: 1 of 2")
        assert two.tripwires("--output", "a", "--output", "b").returncode == 2


class TestPlugin:
    """The pytest plugin, in a session of its own."""

    def test_inert_unless_asked(self, copy):
        copy.write("empty/test_it.py", "import sys\ndef test_it():\n    assert 'nrl_patches' not in sys.modules\n")
        done = copy.pytest()
        assert "1 passed" in done.stdout, done.stdout

    def test_one_test_per_patch_with_the_sentence_as_the_message(self, two):
        done = two.pytest("--nrl-tripwires", "-v")
        assert "1 failed, 1 passed" in done.stdout
        assert "nrl-tripwires::standin.count PASSED" in done.stdout
        for part in (
            "standin.gone: obsolete",
            "next step: upstream fixed it",
            "upstream:  https://example.org",
            "gone.py",
        ):
            assert part in done.stdout
        assert "Traceback" not in done.stdout

    def test_selection_and_skips(self, copy):
        copy.patch()
        refused = copy.pytest("--nrl-tripwires-timeout", "nan")
        assert "expected seconds above 0, 604800 (a week) at most; found 'nan'" in refused.stderr
        assert "1 skipped" in copy.pytest("--nrl-tripwires", "-k", "count").stdout
        assert "1 deselected" in copy.pytest("--nrl-tripwires", "-k", "nothing").stdout

    def test_under_xdist(self, two):
        done = two.pytest("--nrl-tripwires", "-n", "2")
        assert "1 failed, 1 passed" in done.stdout, done.stdout


def test_the_workflow_example(two, tmp_path):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tripwires.yml").read_text())
    steps = workflow["jobs"]["tripwires"]["steps"]
    assert workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as a boolean.
    commands = [step["run"] for step in steps if "run" in step]
    install = commands[0].split()
    # This checkout stands in for the release of nrl-patches, and nothing is installed.
    install[install.index("nrl-patches")] = str(ROOT)
    installed = subprocess.run(
        [sys.executable, *install[1:], "--dry-run", "--no-deps"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "Would install" in installed.stdout
    (command,) = [c for c in commands if c.startswith("nrl-patches tripwires")]
    done = two.run("nrl_patches", *command.split()[1:], GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
    assert done.returncode == 1
    assert "::error title=standin.gone" in done.stdout
    (kept,) = [step["with"]["path"] for step in steps if "with" in step and "path" in step["with"]]
    assert json.loads((two.folder / kept).read_text())["passed"] is False


@pytest.mark.xdist_group("torch==2.13.0")
def test_every_patch_of_this_package_passes_in_this_environment():
    done = subprocess.run(
        [sys.executable, "-m", "nrl_patches", "tripwires", "--format", "json"],
        capture_output=True, text=True, timeout=600, check=False, cwd=ROOT,
    )  # fmt: skip
    report = json.loads(done.stdout)
    probed = {defect.id for defect in load_defects()[0].values() if defect.has_probe}
    assert {t["id"] for t in report["tripwires"]} == set(load().patches) | probed
    assert all(Verdict(t["verdict"]) in PASSING for t in report["tripwires"]), done.stdout
