"""``nrl-patches matrix`` as a user runs it, on an index of our own with good, bad and broken releases."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from matrix.local_index import Index, serve
from package_copy import OFF_BY_ONE, RIGHT, Copy

ID = "standin.count"

PROBE = """
    from standin.core import count
    from importlib.metadata import version
    with open({log!r}, "a") as log:
        log.write(version("standin") + "\\n")
    return Observation(count() != 2, {{"count": count()}})
"""


class Bench(Copy):
    """A copy of the package whose only patch is about the stand-in, and the index that has its releases."""

    def __init__(self, folder):
        super().__init__(folder)
        self.index = Index()
        for version in ("1.1", "1.5"):
            self.index.add(version, RIGHT)
        for version in ("1.2", "1.3", "1.4"):
            self.index.add(version, OFF_BY_ONE)
        shutil.rmtree(folder / "nrl_patches" / "matrix" / "data")
        self.log = folder / "probed"
        self.declare("standin>=1.2,<1.5")

    def declare(self, affected, **fields):
        self.patch(probe=PROBE.format(log=str(self.log)), affected=affected, **fields)

    def variables(self):
        return {"UV_DEFAULT_INDEX": self.address, "UV_CACHE_DIR": ""}

    def settings(self):
        return self.environ(**self.variables())

    def command(self, *args):
        return [sys.executable, "-m", "nrl_patches", "matrix", "--jobs", "2", *args]

    def matrix(self, *args, without=()):
        """Run the command, where some libraries are not installed."""
        hide = f"""
import importlib.util as u
find = u.find_spec
u.find_spec = lambda name, *package: None if name in {without!r} else find(name, *package)
"""
        environ = self.settings()
        if without:
            folder = self.write("hidden/sitecustomize.py", hide).parent
            environ["PYTHONPATH"] = f"{folder}{os.pathsep}{environ['PYTHONPATH']}"
        return subprocess.run(
            self.command(*args), env=environ, cwd=self.folder, capture_output=True, text=True, check=False
        )

    def known(self):
        return json.loads((self.folder / ".nrl-patches-matrix" / "matrix.json").read_text())["measurements"]

    def verdicts(self):
        return {name.removeprefix("standin=="): m["cells"][ID]["verdict"] for name, m in self.known().items()}

    def probed(self):
        """The releases that were probed since the last call, each as often as it was."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return sorted(lines)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    with serve(made.index) as made.address:
        yield made


def test_it_measures_what_is_declared_with_a_margin_and_the_newest_and_writes_the_report(bench):
    for version in ("0.9", "1.0", "1.6", "1.7", "1.8"):
        bench.index.add(version, RIGHT)
    done = bench.matrix()
    assert done.returncode == 0, done.stderr
    assert set(bench.verdicts()) == {"1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.8"}
    assert done.stdout.startswith(f"exact: {ID}: standin>=1.2,<1.5: seen in 1.2, 1.3, 1.4; gone in 1.5; measured 20")
    report = bench.folder / ".nrl-patches-matrix" / "report"
    assert {file.name for file in report.iterdir()} == {
        "matrix.json",
        "ranges.svg",
        "matrix.svg",
        "matrix.png",
        "matrix.html",
    }
    cell = bench.known()["standin==1.3"]["cells"][ID]
    assert (cell["present"], cell["evidence"], cell["patched"]) == (True, {"count": 1}, {"count": 2})
    assert "8/8, about 0 s left: " in done.stderr
    assert f"`nrl-patches matrix --clean --folder {report.parent}` gives it back" in done.stderr


@pytest.mark.parametrize(
    ("affected", "objection"),
    [
        ("standin>=1.2,<1.4", "standin==1.4 has the defect, but is not declared"),
        ("standin>=1.1,<1.5", "standin==1.1 is declared, but does not have the defect"),
        ("standin>=1.2", "standin: the range extends past 1.5"),
    ],
)
def test_a_declaration_that_is_not_what_was_measured_fails_with_one_to_paste(bench, affected, objection):
    bench.declare(affected)
    done = bench.matrix()
    assert done.returncode == 1
    assert objection in done.stdout
    assert '    paste: affected="standin>=1.2,<1.5"' in done.stdout
    bench.declare("standin>=1.2,<1.5")
    assert bench.matrix().returncode == 0


def test_a_second_run_measures_nothing_and_a_new_release_only_itself(bench):
    assert bench.matrix().returncode == 0
    assert bench.probed()
    requests = len(bench.index.requests)
    assert bench.matrix().returncode == 0
    assert bench.probed() == []
    assert len(bench.index.requests) == requests + 1  # what is there
    bench.index.add("1.7", OFF_BY_ONE)
    done = bench.matrix()
    assert done.returncode == 1
    assert bench.probed() == ["1.7"]
    assert 'paste: affected=("standin>=1.2,<1.5", "standin>=1.7,<=1.7")' in done.stdout


def test_a_changed_range_measures_the_releases_it_is_about_and_a_changed_probe_all(bench):
    bench.declare("standin>=1.2,<1.4")
    bench.matrix()
    bench.probed()
    bench.declare("standin>=1.2,<1.5")
    bench.matrix()
    assert bench.probed() == ["1.4", "1.4"]
    bench.declare("standin>=1.2,<1.5", more="CHANGED = True\n")
    bench.matrix()
    assert set(bench.probed()) == set(bench.verdicts())


@pytest.mark.parametrize("after", [0, 2])
def test_killed_at_any_moment_it_resumes_without_redoing_what_was_finished(bench, after):
    with subprocess.Popen(bench.command(), env=bench.settings(), cwd=bench.folder, stderr=subprocess.PIPE) as process:
        for _ in range(1 + after):  # the headline, then a line per release
            process.stderr.readline()
        process.send_signal(signal.SIGKILL)
    finished = set(bench.verdicts()) if after else set()
    assert len(finished) >= after
    done = bench.matrix()
    assert done.returncode == 0, done.stderr
    assert f"{5 - len(finished)} environments to measure" in done.stderr
    assert set(bench.verdicts()) == {"1.1", "1.2", "1.3", "1.4", "1.5"}
    assert not list((bench.folder / ".nrl-patches-matrix").rglob("*.part-*"))


def test_a_release_that_cannot_be_installed_does_not_stop_the_others_and_is_tried_again(bench):
    bench.index.add("1.3", RIGHT, content=b"no wheel")
    done = bench.matrix()
    assert done.returncode == 1
    assert done.stdout.startswith("OPEN: ")
    assert "    no answer, but it matters: standin==1.3\n" in done.stdout
    assert "    standin==1.3 could not be measured: standin==1.3 cannot be installed: error: " in done.stdout
    assert "127.0.0.1" not in done.stdout
    assert len(bench.known()) == 5
    bench.probed()
    bench.index.add("1.3", OFF_BY_ONE)
    assert bench.matrix().returncode == 0
    assert bench.probed() == ["1.3", "1.3"]


def test_a_release_on_which_the_probe_raises_is_an_error_with_the_reason(bench):
    bench.index.add("1.4", "raise ImportError(f'no operator in {__file__}')")
    done = bench.matrix()
    assert bench.verdicts()["1.4"] == "error"
    # Where things lie on this machine is left out.
    assert "standin==1.4 could not be measured: ImportError: no operator in standin-1.4-" in done.stdout
    # What cannot be measured is neither in nor out, and nothing is certain without it.
    assert done.returncode == 1
    assert "standin>=1.2,<1.5: seen in 1.2, 1.3; gone in 1.5" in done.stdout
    bench.probed()
    bench.index.add("1.4", OFF_BY_ONE)
    shutil.rmtree(next((bench.folder / ".nrl-patches-matrix" / "environments").glob("standin-1.4-*")))
    shutil.rmtree(bench.folder / ".nrl-patches-matrix" / "environments" / "cache")
    bench.matrix()
    assert bench.probed() == []
    bench.matrix("--again", "errors")
    assert bench.probed() == ["1.4", "1.4"]


HANG = "import time\ntime.sleep(600)\n"
CRASH = "import os\nos.kill(os.getpid(), 11)\n"


@pytest.mark.parametrize(
    ("core", "said"),
    [
        (HANG, "importing what is patched took longer than 2 s"),
        (CRASH, "importing what is patched was killed by SIGSEGV"),
        (
            f"def count():\n    {HANG.splitlines()[0]}\n    {HANG.splitlines()[1]}\n",
            "took longer than 2 s and was killed",
        ),
        (
            f"def count():\n    {CRASH.splitlines()[0]}\n    {CRASH.splitlines()[1]}\n",
            "the probe was killed by SIGSEGV",
        ),
    ],
    ids=["import-hangs", "import-crashes", "probe-hangs", "probe-crashes"],
)
def test_what_hangs_or_crashes_is_killed_and_said_and_does_not_stop_the_others(bench, core, said):
    bench.index.add("1.4", core)
    done = bench.matrix("--timeout", "2", "--releases", ">=1.3,<1.6")
    assert "standin==1.4 could not be measured: " in done.stdout
    assert said in done.stdout
    assert bench.known()["standin==1.3"]["cells"][ID]["verdict"] == "needed"
    assert bench.known()["standin==1.5"]["cells"][ID]["verdict"] == "not affected"


def test_yanked_releases_are_measured_but_no_range_bends_around_them_and_pre_releases_wait_to_be_asked_for(bench):
    bench.index.add("1.3", RIGHT, yanked="by mistake")
    bench.index.add("1.5rc1", OFF_BY_ONE)
    done = bench.matrix()
    assert done.returncode == 0, done.stdout
    assert "    standin==1.3 (yanked: by mistake) is not affected, against the range" in done.stdout
    assert "1.5rc1" not in bench.verdicts()
    bench.matrix("--pre")
    assert bench.verdicts()["1.5rc1"] == "needed"


def test_a_selection_measures_no_more_and_the_report_keeps_the_rest(bench):
    done = bench.matrix("standin", "--releases", ">=1.2,<1.4")
    assert set(bench.verdicts()) == {"1.2", "1.3"}
    assert "declared, but not measured: 1.4" in done.stdout
    assert "in a range, next to it or the newest, but not measured: 1.1, 1.5" in done.stdout
    assert done.returncode == 1
    bench.matrix("--patch", ID)
    assert len(bench.verdicts()) == 5


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["elsewhere"], "no patch is about 'elsewhere', only about standin"),
        (["--patch", "nothing"], "'nothing' is not the id of a patch"),
        (["--releases", "about 5"], "no version specifier"),
        (
            ["--releases", "==77"],
            "expected at least one on the index; found none; the newest is 2.0rc1; next step: give other --releases",
        ),
        (
            ["--releases", "==2.0rc1"],
            "==2.0rc1: expected at least one on the index; found only pre-releases: 2.0rc1; next step: add --pre",
        ),
    ],
)
def test_what_it_cannot_do_it_says(bench, args, said):
    bench.index.add("2.0rc1", RIGHT)
    done = bench.matrix(*args)
    assert done.returncode
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_selection_of_nothing_is_no_empty_report(bench):
    bench.patch(name="other", affected="another<2", target="another.core:count", opt_out="NRL_DISABLE_OTHER")
    done = bench.matrix("another", "--patch", ID)
    assert done.returncode == 2
    assert f"the selection of {ID}: expected a patch about another; found only about standin; next " in done.stderr
    assert not (bench.folder / ".nrl-patches-matrix").exists()


def test_evidence_that_cannot_be_read_is_said_and_can_be_cleaned(bench):
    bench.matrix("--releases", "==1.2")
    file = bench.folder / ".nrl-patches-matrix" / "matrix.json"
    file.write_text("")
    done = bench.matrix()
    assert done.returncode == 3
    assert f"Error: {file}: expected " in done.stderr
    cleaning = f"nrl-patches matrix --clean --folder {file.parent}"
    assert f"found an empty file; next step: delete the file, or its whole folder with `{cleaning}`" in done.stderr
    assert "Traceback" not in done.stderr
    without = "matplotlib", "psutil", "pypi_simple", "torch", "uv"
    assert bench.matrix(*cleaning.split()[2:], without=without).returncode == 0
    assert not file.parent.exists()


def test_what_ci_kept_of_the_nights_before_is_taken_up_in_a_new_checkout(bench):
    assert bench.matrix().returncode == 0
    bench.probed()
    folder = bench.folder / ".nrl-patches-matrix"
    kept = (folder / "matrix.json").read_text()
    assert bench.matrix("--clean").returncode == 0
    folder.mkdir()
    (folder / "matrix.json").write_text(kept)
    done = bench.matrix("--output", "report")
    assert done.returncode == 0, done.stderr
    assert bench.probed() == []
    assert (folder / "matrix.json").read_text() == kept


def test_the_page_names_every_torch_that_something_was_measured_with(bench):
    bench.matrix("--releases", "==1.2")
    folder = bench.folder / ".nrl-patches-matrix"
    known = json.loads((folder / "matrix.json").read_text())
    (measurement,) = known["measurements"].values()
    measurement["cells"][ID]["versions"] = measurement["versions"] | {"torch": "1.99"}
    (folder / "matrix.json").write_text(json.dumps(known))
    assert bench.matrix("--offline", without=("psutil", "pypi_simple", "torch", "uv")).returncode == 1
    page = (folder / "report" / "matrix.html").read_text()
    assert '<th scope="row">torch</th><td>1.99</td>' in page


def test_an_index_that_does_not_answer_is_said_and_known_things_can_still_be_reported(bench):
    assert bench.matrix().returncode == 0
    bench.address = "http://127.0.0.1:9/simple/"
    done = bench.matrix()
    assert done.returncode == 3
    assert "Error: the package index: expected its releases; found standin: ConnectionError" in done.stderr
    assert "add --offline for a report on what is known" in done.stderr
    assert "Traceback" not in done.stderr
    done = bench.matrix("--offline")
    assert done.returncode == 0
    assert done.stdout.startswith("exact: ")


def test_two_runs_do_not_share_a_folder_and_clean_gives_it_back(bench):
    bench.matrix("--releases", "==1.2")
    folder = bench.folder / ".nrl-patches-matrix"
    (folder / "mine.txt").write_text("not ours")
    with subprocess.Popen(bench.command(), env=bench.settings(), cwd=bench.folder, stderr=subprocess.PIPE) as process:
        process.stderr.readline()
        for done in (bench.matrix(), bench.matrix("--clean")):
            assert done.returncode == 3
            assert "its lock is held" in done.stderr
        process.kill()
    done = bench.matrix("--clean")
    assert done.returncode == 0
    assert "given back" in done.stdout
    assert {file.name for file in folder.iterdir()} == {"mine.txt"}


def test_somebody_elses_folder_is_neither_used_nor_cleaned(bench):
    theirs = bench.folder / "theirs"
    (theirs / "report").mkdir(parents=True)
    (theirs / "report" / "thesis.tex").write_text("mine")
    assert "other files" in bench.matrix("--folder", "theirs").stderr
    assert "no made-by-nrl-patches in it" in bench.matrix("--folder", "theirs", "--clean").stderr
    assert (theirs / "report" / "thesis.tex").read_text() == "mine"
    assert {file.name for file in theirs.iterdir()} == {"report"}


def test_a_folder_of_that_name_in_the_current_directory_is_not_measured(bench):
    (bench.folder / "elsewhere" / "standin").mkdir(parents=True)
    (bench.folder / "elsewhere" / "standin" / "__init__.py").write_text("")
    (bench.folder / "elsewhere" / "standin" / "core.py").write_text(RIGHT)
    for name in ("json", "logging", "subprocess", "uv"):
        (bench.folder / "elsewhere" / f"{name}.py").write_text("raise SystemExit('executed')")
    done = subprocess.run(
        bench.command("--releases", "==1.2"),
        env=bench.settings(), cwd=bench.folder / "elsewhere", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "seen in 1.2" in done.stdout, done


LEAVES_A_CHILD = """
    import subprocess
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    from standin.core import count
    return Observation(count() != 2)
"""
IGNORES_ALARMS = """
    import signal, time
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("probe", "verdict"), [(LEAVES_A_CHILD, "needed"), (IGNORES_ALARMS, "error")], ids=["child", "alarm"]
)
def test_no_probe_keeps_the_matrix_from_ending(bench, probe, verdict):
    bench.patch(probe=probe, affected="standin>=1.2,<1.5")
    bench.matrix("--releases", "==1.2", "--timeout", "3")
    assert bench.verdicts() == {"1.2": verdict}


@pytest.fixture
def _interruptible():
    # A shell without job control lets what it starts in the background ignore SIGINT, and all that comes of it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_what_it_started(bench, sent):
    bench.patch(probe="import time\ntime.sleep(600)\n", affected="standin>=1.2,<1.5")
    folder = bench.folder / ".nrl-patches-matrix" / "environments"
    with subprocess.Popen(
        bench.command("--releases", "==1.2"), env=bench.settings(), cwd=bench.folder, stderr=subprocess.PIPE
    ) as process:
        process.stderr.readline()
        while not children(folder, at_least=2):  # The probe is a fork of the first.
            time.sleep(0.1)
        process.send_signal(sent)
        said = process.stderr.read()
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGTERM)
    assert (b"Aborted!" in said) == (sent == signal.SIGINT)
    end = time.monotonic() + 10
    while children(folder):
        assert time.monotonic() < end
        time.sleep(0.1)


def children(folder, at_least=1):
    """Whether so many processes work in a folder."""
    found = [p for p in psutil.process_iter(["cwd", "status"]) if p.info["cwd"] == str(folder)]
    return len([p for p in found if p.info["status"] != psutil.STATUS_ZOMBIE]) >= at_least


def test_a_place_for_the_report_that_cannot_be_written_is_said_before_anything_is_measured(bench):
    bench.write("taken", "")
    done = bench.matrix("--output", "taken")
    assert (done.returncode, bench.probed()) == (3, [])
    assert "Error: taken: expected a writable folder for the report; found [Errno 17] File exists" in done.stderr
