"""The folder of a run: whose files are in it."""

import pytest
from standins import run

from nrl_patches.matrix.workshop import NotOursError, Workshop


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


KILLED_AT_EACH_STEP = """
    import itertools, os, signal, sys, tempfile
    from pathlib import Path
    from nrl_patches.matrix.workshop import Workshop

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
