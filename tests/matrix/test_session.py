"""The folder of a run: whose files are in it, and which of two measurements of the same cell counts."""

import os
from types import SimpleNamespace

import pytest
from standins import run

from nrl_patches.matrix import session as workshop
from nrl_patches.matrix.disk import disk_usage
from nrl_patches.matrix.evidence import Cell, Evidence, Measurement
from nrl_patches.matrix.plan import Selection, Task
from nrl_patches.matrix.session import NotOursError, Workshop

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "nrl-patches": "0.1.0"}


class Folder:
    """A folder of the matrix for one patch, whose package was released with some evidence."""

    def __init__(self, sandbox, folder, committed):
        self.path = folder
        self.committed = committed
        self.environment = f"{sandbox.name}==1.0"
        self.patches = [*sandbox.registry()]
        self.id = self.patches[0].id
        self.code = Workshop(folder, self.patches, 1).codes[self.id]

    def cell(self, **fields):
        values = {"verdict": "needed", "declared": True, "code": self.code, "present": True, "date": "2026-11-21"}
        return Cell(**values | fields)

    def evidence(self, cell, versions=VERSIONS):
        return Evidence({self.environment: Measurement(cell.date, versions, {self.id: cell})})

    def writes(self, evidence, *, committed=False):
        file = self.committed if committed else self.path / "matrix.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(evidence.text())

    def opened(self, patches=None):
        made = Workshop(self.path, self.patches if patches is None else patches, 1, others=self.patches)
        with made.open():
            return made

    def known(self, **fields):
        return self.opened(**fields).evidence.measurements[self.environment].cells[self.id]


@pytest.fixture
def folder(sandbox, tmp_path, monkeypatch):
    sandbox.patch()
    committed = tmp_path / "committed.json"
    monkeypatch.setattr(workshop, "COMMITTED", committed)
    return Folder(sandbox, tmp_path / "folder", committed)


ERROR = {"verdict": "error", "present": None, "error": "ImportError: moved"}
UNCOVERED = {"verdict": "uncovered", "declared": False}

OLD = {"date": "2026-11-01"}
NEW = {"date": "2026-12-01"}


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"code": "other"} | NEW, ERROR | OLD),
        (ERROR | NEW, UNCOVERED | OLD),
        (UNCOVERED | NEW, OLD),
        (OLD, NEW),
        ({"code": "other"} | ERROR | NEW, {"code": "other"} | OLD),
    ],
    ids=["current-code", "an-answer", "declared-as-today", "newer", "an-answer-of-other-code"],
)
@pytest.mark.parametrize("selected", [True, False])
def test_of_two_cells_the_better_counts_wherever_it_lies(folder, worse, better, selected):
    patches = None if selected else []
    worse, better = folder.cell(**worse), folder.cell(**better)
    for in_package, in_folder in ((worse, better), (better, worse)):
        folder.writes(folder.evidence(in_package), committed=True)
        folder.writes(folder.evidence(in_folder))
        assert folder.known(patches=patches) == better


def test_of_two_cells_of_a_day_the_one_that_was_measured_here_counts(folder):
    folder.writes(folder.evidence(folder.cell(seconds=1)), committed=True)
    folder.writes(folder.evidence(folder.cell(seconds=2)))
    assert folder.known().seconds == 2


def test_what_was_measured_just_now_counts_whatever_was_known(folder):
    folder.writes(folder.evidence(folder.cell(**NEW)), committed=True)
    made = folder.opened()
    measured = folder.cell(**ERROR, **OLD)
    task = Task(folder.environment, (folder.id,))
    measurement = folder.evidence(measured).measurements[folder.environment]
    made.bench = SimpleNamespace(measure_all=lambda tasks, _, done: done(tasks[0], measurement))
    with made.open():
        made.run([task], 1, lambda *_: None)
    assert made.evidence.measurements[folder.environment].cells[folder.id] == measured
    assert Evidence.read(folder.path / "matrix.json").text() == made.evidence.text()


def test_a_cell_keeps_the_versions_that_it_was_measured_with(folder):
    older = VERSIONS | {"torch": "2.5.0"}
    folder.writes(folder.evidence(folder.cell(**OLD), older), committed=True)
    other = Evidence({folder.environment: Measurement("2026-11-21", VERSIONS, {"other": folder.cell()})})
    folder.writes(other)
    found = folder.opened().evidence.measurements[folder.environment]
    assert (found.date, found.versions) == ("2026-11-21", VERSIONS)
    assert found.cells == {"other": folder.cell(), folder.id: folder.cell(**OLD, versions=older)}


def test_an_older_folder_does_not_hide_a_release_that_the_package_knows(folder):
    folder.writes(Evidence(releases={"standin": {"1.9": "yanked: oh", "1.10": "", "1.11": ""}}), committed=True)
    folder.writes(Evidence(releases={"standin": {"1.9": "", "1.10": ""}}))
    assert folder.opened().evidence.releases == {"standin": {"1.9": "yanked: oh", "1.10": "", "1.11": ""}}
    assert [*folder.opened().evidence.releases["standin"]] == ["1.9", "1.10", "1.11"]


def test_what_the_package_was_released_with_is_not_rewritten_where_nothing_is_new(tmp_path):
    made = Workshop(tmp_path / "folder", [], 1)
    committed = workshop.COMMITTED.read_text(encoding="utf-8")
    for _ in range(2):
        with made.open():
            assert made.evidence.text() == committed
        (tmp_path / "folder" / "matrix.json").write_text(committed, encoding="utf-8")


@pytest.mark.parametrize("name", ["environments", "matplotlib", "report", "lock", "matrix.json/mine"])
def test_a_folder_that_only_has_names_like_ours_in_it_is_somebody_elses(tmp_path, name):
    theirs = tmp_path / name / "thesis.tex"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    made = Workshop(tmp_path, [], 1)
    with pytest.raises((NotOursError, OSError)), made.open():
        pass
    with pytest.raises(NotOursError, match="no made-by-nrl-patches in it"):
        made.clean()
    assert theirs.read_text() == "mine"
    assert [*tmp_path.iterdir()] == [tmp_path / name.partition("/")[0]]


def test_what_another_machine_measured_may_lie_alone_in_the_folder_if_that_is_what_it_is(folder):
    folder.writes(folder.evidence(folder.cell()))
    assert folder.known() == folder.cell()
    folder.opened().clean()
    assert not folder.path.exists()
    folder.path.mkdir()
    (folder.path / "matrix.json").write_text('{"rows": [[1, 0], [0, 1]]}')
    with pytest.raises(ValueError, match=r"matrix\.json: expected .* found ValueError: schema None"):
        folder.opened()
    assert [file.name for file in folder.path.iterdir()] == ["matrix.json"]


KILLED_AT_EACH_STEP = """
    import itertools, os, signal, sys, tempfile
    from pathlib import Path
    from nrl_patches.matrix.session import Workshop

    def opened(folder):
        with Workshop(folder, [], 1).open():
            pass

    def filled(folder):
        opened(folder)
        for name in ("environments/cache/file", "report/matrix.svg", "matplotlib/fonts", ".matrix.json.part"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    def kill_at(step):
        steps = itertools.count()
        def count(event, args):
            writes = event in {"os.mkdir", "os.remove", "os.rmdir"} or event == "open" and args[2] & os.O_CREAT
            if writes and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)

    def steps_of(prepare, action):
        for step in itertools.count():
            folder = Path(tempfile.mkdtemp()) / "folder"
            prepare(folder)
            child = os.fork()
            if not child:
                kill_at(step)
                action(folder)
                os._exit(0)
            ended = os.waitpid(child, 0)[1] == 0
            opened(folder)
            Workshop(folder, [], 1).clean()
            assert not folder.exists(), [*folder.iterdir()]
            if ended:
                return step

    print(steps_of(lambda folder: None, opened) >= 3)
    print(steps_of(filled, lambda folder: Workshop(folder, [], 1).clean()) >= 8)
"""


def test_killed_at_any_step_of_making_and_deleting_it_the_folder_is_still_ours(tmp_path):
    done = run(KILLED_AT_EACH_STEP, TMPDIR=str(tmp_path))
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_what_an_installers_cache_elsewhere_keeps_is_not_given_back(tmp_path):
    inside, cache = tmp_path / "inside", tmp_path / "cache"
    inside.mkdir()
    cache.mkdir()
    empty = disk_usage(tmp_path)
    (cache / "shared").write_bytes(os.urandom(1_000_000))
    os.link(cache / "shared", inside / "shared")
    assert disk_usage(inside) == 0
    (inside / "own").write_bytes(os.urandom(1_000_000))
    os.link(inside / "own", inside / "again")
    assert 1_000_000 <= disk_usage(inside) < 1_100_000
    assert 2_000_000 <= disk_usage(tmp_path) - empty < 2_200_000


def test_clean_says_what_is_free_afterwards(folder, tmp_path):
    made = folder.opened()
    (tmp_path / "shared").write_bytes(os.urandom(1_000_000))
    os.link(tmp_path / "shared", folder.path / "environments" / "shared")
    assert made.clean() < 100_000


def test_the_index_is_asked_about_a_companion_that_no_chosen_patch_names(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(workshop, "COMPANIONS", {folder.environment.split("==")[0]: "companion"})
    monkeypatch.setattr(workshop, "find_releases", lambda name: asked.append(name) or [])
    with pytest.raises(ValueError, match="release"):
        Workshop(folder.path, folder.patches, 1).plan(Selection(), None)
    assert "companion" in asked
