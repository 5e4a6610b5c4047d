"""The interpreters that this package starts."""

import sys
import tempfile
import threading

import pytest

from nrl_patches.processes import launch
from nrl_patches.processes.launch import MODULE, ending_all, run_code, tail


def test_of_an_output_without_end_only_the_end_is_read():
    with tempfile.TemporaryFile() as file:
        file.truncate(3 << 30)  # Sparse: nothing of it lies on the disk.
        file.seek(0, 2)
        file.write(b"the end")
        assert tail(file, 8) == "\0the end"
        assert len(tail(file)) == 100_000


ASKED = (
    "import os, sys; print(os.environ.get('PYTHONSAFEPATH'), '' in sys.path, sys.argv[1:]); sys.stderr.write('apart')"
)


@pytest.mark.parametrize(("value", "kept"), [(None, "None"), ("1", "1")])
@pytest.mark.parametrize("python", ["", sys.executable])
def test_what_they_start_in_turn_is_as_it_would_be_without_us(monkeypatch, value, kept, python):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if value:
        monkeypatch.setenv("PYTHONSAFEPATH", value)
    done = run_code(ASKED, ["a b", "-c"], timeout=60, python=python, apart=True)
    assert (done.code, done.output, done.errors) == (0, f"{kept} False ['a b', '-c']\n", "apart")


def test_a_module_is_run_as_python_does_it():
    done = run_code(MODULE, ["platform", "--terse"], timeout=60)
    assert done.code == 0
    assert "Linux" in done.output


def test_one_thread_ends_what_the_others_have_started_and_lets_nothing_more_start():
    codes = []

    def wait():
        codes.append(run_code("import time; time.sleep(600)", timeout=60).code)

    thread = threading.Thread(target=wait)
    with ending_all() as end:
        thread.start()
        while not launch._running:
            thread.join(0.01)
        end()
        thread.join()
        with pytest.raises(InterruptedError):
            run_code("", timeout=60)
    assert codes == [-9]
    assert run_code("", timeout=60).code == 0
