import importlib
import logging
import sys
import threading

import pytest
from standins import COUNT, only

import nrl_patches
from nrl_patches import State


def test_applied_when_the_target_is_imported(counting, caplog):
    caplog.set_level(logging.INFO, "nrl_patches")
    activation = counting.activate()
    before = only(activation)
    assert before.state == "pending"
    assert f"waits for the import of {counting.name}.core" in before.reason
    assert f"{counting.name}.core" not in sys.modules
    assert counting.core().count() == 2
    after = only(activation)
    assert after.state is State.APPLIED
    assert after.reason == f"{counting.name} 1.0 is in {counting.name}<2"
    assert [record.getMessage() for record in caplog.records] == [f"applied {after.id}: {after.reason}"]


def test_applied_at_once_when_the_target_is_there(counting):
    core = counting.core()
    counting.activate()
    assert core.count() == 2


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.0", "not-affected"), (None, "applied"), ("2.0rc1", "applied"), ("1.9+cpu", "applied")],
)
def test_version_gate(sandbox, version, state):
    sandbox.distribution(version, core=COUNT)
    sandbox.patch()
    activation = sandbox.activate()
    result = sandbox.core().count()
    assert only(activation).state == state
    assert result == (2 if state == "applied" else 1)


def test_not_installed(sandbox):
    sandbox.patch()
    status = only(sandbox.activate())
    assert status.state == "not-installed"
    assert status.reason == f"{sandbox.name} is not installed"


def test_not_affected_is_known_before_the_import(sandbox):
    sandbox.distribution("2.0", core=COUNT)
    sandbox.patch()
    status = only(sandbox.activate())
    assert (status.state, status.reason) == ("not-affected", f"{sandbox.name} 2.0 is not in {sandbox.name}<2")


def test_disabled(counting):
    activation = counting.activate(NRL_DISABLE_OFF_BY_ONE="1")
    assert counting.core().count() == 1
    assert (only(activation).state, only(activation).reason) == ("disabled", "NRL_DISABLE_OFF_BY_ONE=1")
    activation.apply()
    assert counting.core().count() == 1


def test_forced_outside_the_range(sandbox):
    sandbox.distribution("2.0", core=COUNT)
    patch_id = sandbox.patch()
    activation = sandbox.activate(NRL_PATCHES_FORCE=patch_id)
    assert sandbox.core().count() == 2
    assert "forced by NRL_PATCHES_FORCE" in only(activation).reason


OBJECTS = "lambda original: 'counts from zero'"


def test_a_build_between_releases_is_left_alone_when_the_guard_objects(sandbox, caplog):
    sandbox.distribution("2.0.dev3", core=COUNT)
    sandbox.patch(guard=OBJECTS)
    activation = sandbox.activate()
    assert sandbox.core().count() == 1
    status = only(activation)
    assert status.state == "not-affected"
    assert "2.0.dev3 is no release; the guard decided: " in status.reason
    assert not caplog.records


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"guard": OBJECTS}, "counts from zero"),
        ({"target": "{name}.core:cuont"}, "cuont"),
        ({"target": "{name}.core:Counter.count"}, "Counter"),
        ({"target": "{name}.core:LIMIT"}, "a int"),
        ({"guard": "lambda f: mismatch(f, parameters='start')"}, "has no parameter start"),
        ({"guard": "lambda f: mismatch(f, attributes='enumerate')"}, "does not use enumerate"),
        ({"target": "{name}.core:size", "guard": "mismatch"}, "is no Python function"),
    ],
)
def test_drift(sandbox, caplog, fields, found):
    sandbox.distribution("1.0", core=COUNT + "LIMIT = 3\nsize = len\n")
    patch_id = sandbox.patch(**{key: value.format(name=sandbox.name) for key, value in fields.items()})
    activation = sandbox.activate()
    core = sandbox.core()
    importlib.reload(core)
    assert core.count() == 1
    status = only(activation)
    assert status.state == "drifted"
    for part in (patch_id, "expected ", found, f"{sandbox.name} 1.0", "next step: ", "NRL_DISABLE_OFF_BY_ONE=1"):
        assert part in status.reason
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, though met twice
    assert status.reason in caplog.text


BROKEN_FIX = "raise LookupError('no such thing')"


def test_a_failing_fix_leaves_the_host_alone(counting, caplog):
    counting.patch(fix=BROKEN_FIX)
    activation = counting.activate()
    assert counting.core().count() == 1
    status = only(activation)
    assert status.state == "failed"
    assert "LookupError: no such thing" in status.reason
    assert "in fix" in status.traceback
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "fix", ["return original", "return None", "return len", "import functools\nreturn functools.partial(original)"]
)
def test_a_fix_must_build_a_plain_function(counting, fix):
    counting.patch(fix=fix)
    activation = counting.activate()
    assert counting.core().count() == 1
    assert "must build a new plain function" in only(activation).reason


def test_a_guard_that_raises_is_a_failure_too(counting):
    counting.patch(guard="lambda original: 1 / 0")
    activation = counting.activate()
    assert counting.core().count() == 1
    assert only(activation).state == "failed"
    assert "ZeroDivisionError" in only(activation).traceback


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"guard": OBJECTS}, nrl_patches.DriftedError), ({"fix": BROKEN_FIX}, nrl_patches.FailedError)],
)
def test_strict_raises_where_the_target_is_imported_and_at_once_where_it_is_there(counting, fields, error):
    counting.patch(**fields)
    counting.activate(NRL_PATCHES_STRICT="1")
    with pytest.raises(error):
        counting.core()
    counting.clean()
    assert counting.core().count() == 1
    with pytest.raises(error):
        counting.activate(NRL_PATCHES_STRICT="1")
    assert counting.core().count() == 1


def test_strict_failure_takes_back_what_was_applied_before(counting):
    counting.patch("zz_broken", fix=BROKEN_FIX)
    core = counting.core()
    original = core.count
    with pytest.raises(nrl_patches.FailedError):
        counting.activate(NRL_PATCHES_STRICT="1")
    assert core.count is original


TWO = """
@patch.fix("{name}.{module}:{function}", guard={guard})
def other(original):
    def fixed():
        return original() + 10
    return fixed
"""


def test_two_targets_in_one_module_all_or_none(sandbox):
    sandbox.distribution("1.0", core=COUNT + "def tens():\n    return 10\n")
    sandbox.patch(more=TWO.format(name=sandbox.name, module="core", function="tens", guard=OBJECTS))
    activation = sandbox.activate()
    assert (sandbox.core().count(), sandbox.core().tens()) == (1, 10)
    assert only(activation).state == "drifted"


def test_two_modules_are_applied_as_they_come(sandbox):
    sandbox.distribution("1.0", core=COUNT, far="def tens():\n    return 10\n")
    sandbox.patch(more=TWO.format(name=sandbox.name, module="far", function="tens", guard="lambda f: None"))
    activation = sandbox.activate()
    assert sandbox.core().count() == 2
    status = only(activation)
    assert (status.state, f"waits for the import of {sandbox.name}.far" in status.reason) == ("pending", True)
    assert importlib.import_module(f"{sandbox.name}.far").tens() == 20
    assert only(activation).state == "applied"


def test_a_module_that_the_release_does_not_have_is_not_waited_for(sandbox):
    sandbox.distribution("1.0", core=COUNT)
    sandbox.patch(more=TWO.format(name=sandbox.name, module="newer", function="tens", guard="lambda f: None"))
    activation = sandbox.activate()
    assert only(activation).state == "pending"
    assert sandbox.core().count() == 2
    assert only(activation).state == "applied"


def test_a_failure_in_the_second_module_takes_back_the_first(sandbox):
    sandbox.distribution("1.0", core=COUNT, far="")
    sandbox.patch(more=TWO.format(name=sandbox.name, module="far", function="tens", guard="lambda f: None"))
    activation = sandbox.activate()
    assert sandbox.core().count() == 2
    importlib.import_module(f"{sandbox.name}.far")
    assert sandbox.core().count() == 1
    assert only(activation).state == "drifted"


class TestRequired:
    """A required patch that cannot be applied: the import goes on, the call does not."""

    @pytest.mark.parametrize("fields", [{"guard": OBJECTS}, {"fix": BROKEN_FIX}])
    def test_the_call_raises(self, counting, caplog, fields):
        patch_id = counting.patch(required=True, **fields)
        activation = counting.activate()
        core = counting.core()
        with pytest.raises(nrl_patches.RequiredPatchError, match=patch_id):
            core.count()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert only(activation).state in {"drifted", "failed"}
        activation.undo(patch_id)
        assert core.count() == 1

    def test_a_reloaded_target_is_blocked_again(self, counting):
        counting.patch(required=True, guard=OBJECTS)
        activation = counting.activate()
        core = importlib.reload(counting.core())
        with pytest.raises(nrl_patches.RequiredPatchError):
            core.count()
        assert only(activation).state == "drifted"

    def test_it_can_be_opted_out_of(self, counting):
        counting.patch(required=True, guard=OBJECTS)
        counting.activate(NRL_DISABLE_OFF_BY_ONE="1")
        assert counting.core().count() == 1

    def test_a_target_that_is_gone_is_an_error_in_the_log(self, counting, caplog):
        counting.patch(required=True, target=f"{counting.name}.core:gone")
        counting.activate()
        counting.core()
        assert [record.levelname for record in caplog.records] == ["ERROR"]


class TestOnce:
    """Once only: however often, from however many threads, after a reload."""

    def test_repeated_start_and_apply(self, counting):
        activation = counting.activate()
        core = counting.core()
        fixed = core.count
        activation.start()
        activation.apply()
        assert core.count is fixed
        assert core.count() == 2

    def test_a_second_activation_of_the_same_copy(self, counting):
        core = counting.core()
        first, second = counting.activate(), counting.activate()
        assert core.count() == 2
        assert only(first).state == only(second).state == "applied"

    def test_reloaded_target(self, counting):
        activation = counting.activate()
        core = counting.core()
        for _ in range(3):
            importlib.reload(core)
            assert core.count() == 2
        assert only(activation).state == "applied"

    def test_second_import_of_the_target(self, counting):
        counting.activate()
        old = counting.core()
        del sys.modules[old.__name__]
        new = counting.core()
        assert (old.count(), new.count()) == (2, 2)

    @pytest.mark.parametrize("imported_before", [True, False])
    def test_thirty_two_threads(self, counting, imported_before):
        if imported_before:
            counting.core()
        activations = []
        registry = counting.registry()
        gate = threading.Barrier(32)
        results = []

        def worker():
            activation = nrl_patches.engine.activation.Activation(registry, {})
            activations.append(activation)
            gate.wait(60)
            activation.start()
            results.append(counting.core().count())

        threads = [threading.Thread(target=worker) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        counting.activations += activations
        assert results == [2] * 32
        assert {only(activation).state for activation in activations} == {State.APPLIED}
