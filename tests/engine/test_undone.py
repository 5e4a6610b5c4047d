"""Undoing and applying again: from several threads, in blocks that overlap, and after something went wrong."""

import sys
import threading
import types

import pytest
from standins import only

import nrl_patches
from nrl_patches import State
from nrl_patches.engine.slots import PROCESS_LOCK


class TestBlocks:
    """Blocks that undo the same patch: it is applied again when the last of them is left."""

    @pytest.mark.parametrize("named", [True, False])
    def test_the_first_to_leave_does_not_end_the_others(self, counting, named):
        activation = counting.activate()
        core = counting.core()
        ids = [f"{counting.patches}.off_by_one"] if named else []
        first, second = activation.undo(*ids), activation.undo(*ids)
        with second:
            with first:
                assert core.count() == 1
            assert core.count() == 1
            assert only(activation).state == "disabled"
        assert core.count() == 2

    def test_in_two_threads(self, counting):
        activation = counting.activate()
        core = counting.core()
        inside, leave = threading.Event(), threading.Event()

        def other():
            with activation.undo():
                inside.set()
                leave.wait(60)

        thread = threading.Thread(target=other)
        with activation.undo():
            thread.start()
            assert inside.wait(60)
        assert core.count() == 1
        leave.set()
        thread.join(60)
        assert core.count() == 2

    def test_what_was_undone_for_good_stays_so(self, counting):
        activation = counting.activate()
        core = counting.core()
        activation.undo()
        with activation.undo(f"{counting.patches}.off_by_one"):
            pass
        assert core.count() == 1
        activation.apply()
        assert core.count() == 2

    def test_apply_ends_them_all(self, counting):
        activation = counting.activate()
        core = counting.core()
        with activation.undo(), activation.undo():
            activation.apply()
            assert core.count() == 2
            activation.undo()
        assert core.count() == 1

    def test_leaving_twice_lets_go_once(self, counting):
        activation = counting.activate()
        core = counting.core()
        block = activation.undo()
        with activation.undo():
            for _ in range(2):
                with block:
                    pass
            assert core.count() == 1
        assert core.count() == 2


def test_nobody_undoes_between_the_replacement_and_the_record_of_it(counting, monkeypatch):
    activation = counting.activate()
    patch_id, applier = f"{counting.patches}.off_by_one", threading.current_thread()
    others = []

    class Records(dict):
        """Lets another thread undo the patch whenever its record is looked at and the lock is free."""

        def __getitem__(self, key):
            if threading.current_thread() is applier and not PROCESS_LOCK._is_owned():
                others.append(threading.Thread(target=activation.undo, args=(patch_id,)))
                others[-1].start()
                others[-1].join(60)
            return super().__getitem__(key)

    with monkeypatch.context() as patching:
        patching.setattr(activation, "_records", Records(activation._records))
        core = counting.core()
        records = dict(activation._records)
    monkeypatch.setattr(activation, "_records", records)
    assert (only(activation).state, core.count()) in {(State.APPLIED, 2), (State.DISABLED, 1)}, others
    activation.apply()
    assert (only(activation).state, core.count()) == (State.APPLIED, 2)
    activation.undo()
    assert core.count() == 1


def test_threads_that_undo_and_apply_leave_nothing_half_done(counting):
    activation = counting.activate()
    core, patch_id = counting.core(), f"{counting.patches}.off_by_one"
    errors = []
    gate = threading.Barrier(4)

    def work(undo, apply):
        gate.wait(60)
        try:
            for _ in range(6):
                undo(patch_id)
                apply(patch_id)
        except Exception as error:  # noqa: BLE001 - whatever it is
            errors.append(error)

    def blocks(patch_id):
        with activation.undo(patch_id):
            activation.status()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ways = [(activation.undo, activation.apply), (blocks, activation.apply)] * 2
        threads = [threading.Thread(target=work, args=way) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert (only(activation).state, core.count()) in {(State.APPLIED, 2), (State.DISABLED, 1)}
    activation.apply()
    assert (only(activation).state, core.count(), only(activation).notes) == (State.APPLIED, 2, ())
    activation.undo()
    assert core.count() == 1


class TestTryingAgain:
    """``apply`` of what has drifted or failed."""

    def test_when_the_intruder_has_gone(self, counting):
        counting.patch("second", fix="return lambda: original() + 10")
        second = f"{counting.patches}.second"
        activation = counting.activate()
        core = counting.core()
        activation.undo(second)
        ours = core.count
        core.count = lambda: ours() + 1000
        activation.apply(second)
        assert activation.status()[second].state == "drifted"
        core.count = ours
        activation.apply(second)
        assert core.count() == 12
        assert activation.status()[second].state == "applied"

    @pytest.mark.parametrize("named", [True, False])
    def test_when_the_intruder_left_the_original_behind(self, counting, named):
        core = counting.core()
        original = core.count
        activation = counting.activate()
        core.count = lambda: 7
        assert only(activation).state == "drifted"
        core.count = original
        activation.apply(*[f"{counting.patches}.off_by_one"] if named else [])
        assert (only(activation).state, core.count()) == ("applied", 2)
        activation.undo()
        assert core.count is original

    def test_a_failure_that_has_passed(self, counting, monkeypatch):
        monkeypatch.setitem(sys.modules, "weather", types.SimpleNamespace(bad=True))
        counting.patch(fix="import weather\nassert not weather.bad\nreturn lambda: original() + 1")
        activation = counting.activate()
        core = counting.core()
        assert only(activation).state == "failed"
        sys.modules["weather"].bad = False
        activation.apply(f"{counting.patches}.off_by_one")
        status = only(activation)
        assert (status.state, status.traceback, core.count()) == ("applied", "", 2)

    def test_what_is_still_wrong_is_said_again(self, counting, caplog):
        counting.patch(guard="lambda original: 'counts from zero'")
        activation = counting.activate()
        counting.core()
        for times in (1, 2):
            assert [record.levelname for record in caplog.records] == ["WARNING"] * times
            activation.apply(f"{counting.patches}.off_by_one")

    @pytest.mark.parametrize(
        ("version", "environ", "words"),
        [
            ("2.0", {}, ["expected a release with the defect; found not-affected: ", "NRL_PATCHES_FORCE="]),
            ("1.0", {"NRL_DISABLE_OFF_BY_ONE": "1"}, ["found disabled: NRL_DISABLE_OFF_BY_ONE=1; next step: "]),
            ("1.0", {"NRL_PATCHES": "0"}, ["found disabled: NRL_PATCHES=0; next step: "]),
        ],
    )
    def test_why_nothing_is_done_is_said_to_who_named_it(self, sandbox, caplog, version, environ, words):
        sandbox.distribution(version, core="def count(): return 1")
        patch_id = sandbox.patch()
        activation = sandbox.activate(**environ)
        sandbox.core()
        activation.apply()
        assert not caplog.records
        activation.apply(patch_id)
        (record,) = caplog.records
        assert all(word in record.getMessage() for word in [f"{patch_id}: ", *words])

    def test_a_patch_that_could_not_be_loaded_is_no_unknown_one(self, counting):
        counting.write(f"{counting.patches}/broken.py", "1/0")
        activation = counting.activate()
        with pytest.raises(nrl_patches.UndoError, match=r"cannot be loaded: .*ZeroDivisionError"):
            activation.apply("broken")
