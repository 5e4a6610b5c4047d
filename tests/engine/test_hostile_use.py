"""What a review of the engine broke, so that it stays mended."""

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import types

import pytest
from standins import COUNT, only, run

import nrl_patches
from nrl_patches import State

LAZY = """
    import importlib.util, sys
    def lazily(name):
        spec = importlib.util.find_spec(name)
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
"""


class TestLazyModules:
    """Modules that importlib.util.LazyLoader has left unexecuted stay so."""

    def test_strangers_are_not_executed_by_the_search_for_holders(self, counting):
        counting.write("heavy.py", "raise RuntimeError('executed')")
        done = counting.run(
            LAZY
            + f"""
    heavy = lazily("heavy")
    from nrl_patches.engine.activation import Activation
    from nrl_patches.engine import registry
    import {counting.patches} as patches
    activation = Activation(registry.load(patches), {{}})
    activation.start()
    import {counting.name}.core as core
    assert core.count() == 2, activation.status()
    assert type(heavy).__name__ == "_LazyModule"
"""
        )
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("registered_before", [True, False])
    def test_a_lazy_target_is_patched_when_it_is_executed(self, counting, registered_before):
        lazy = f'target = lazily("{counting.name}.core")\n'
        start = "activation = Activation(registry.load(patches), {}); activation.start()\n"
        steps = start + "    " + lazy if registered_before else lazy + "    " + start
        done = counting.run(
            LAZY
            + f"""
    from nrl_patches.engine.activation import Activation
    from nrl_patches.engine import registry
    import {counting.patches} as patches
    import {counting.name}
    {steps}
    (status,) = activation.status().values()
    assert status.state == "pending", status
    assert type(target).__name__ == "_LazyModule"
    assert target.count() == 2
    (status,) = activation.status().values()
    assert status.state == "applied", status
"""
        )
        assert done.returncode == 0, done.stderr

    def test_a_name_that_a_module_would_import_is_not_there(self, sandbox):
        sandbox.distribution(core="def __getattr__(name):\n    raise RuntimeError(f'asked for {name}')\n")
        sandbox.patch()
        activation = sandbox.activate()
        sandbox.core()
        assert only(activation).state == "drifted"


class TestPastTheHook:
    """Targets that were imported by somebody who did not ask the finders."""

    def load_directly(self, sandbox):
        name = f"{sandbox.name}.core"
        importlib.import_module(sandbox.name)
        spec = importlib.machinery.PathFinder.find_spec(name, sys.modules[sandbox.name].__path__)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    def test_status_notices_and_applies(self, counting):
        activation = counting.activate()
        core = self.load_directly(counting)
        assert core.count() == 1
        status = only(activation)
        assert status.state == "applied"
        assert "was imported past the import hook" in status.notes[0]
        assert core.count() == 2

    def test_so_does_the_next_import_that_is_hooked(self, counting):
        counting.write(f"{counting.name}/other.py", COUNT)
        counting.patch("other", target=f"{counting.name}.other:count")
        counting.activate()
        core = self.load_directly(counting)
        importlib.import_module(f"{counting.name}.other")
        assert core.count() == 2


def test_strict_mode_refuses_every_import_and_not_only_the_first():
    done = run(
        """
        for _ in range(2):
            try:
                import nrl_patches
            except RuntimeError as error:
                print(type(error).__name__)
        """,
        NRL_PATCHES_STRICT="1",
        NRL_PATCHES_DISABLE="typo",
    )
    assert done.stdout == "SettingsError\nSettingsError\n", done.stderr


def test_strict_mode_leaves_no_half_import_of_a_target_that_was_under_way(sandbox):
    sandbox.distribution()
    sandbox.patch(guard="lambda f: 'is different'")
    sandbox.write(
        f"{sandbox.name}/core.py",
        f"""
        import {sandbox.patches} as patches
        from nrl_patches.engine.activation import Activation
        from nrl_patches.engine import registry
        Activation(registry.load(patches), {{"NRL_PATCHES_STRICT": "1"}}).start()
        def count(): return 1
        """,
    )
    done = sandbox.run(
        f"""
        import sys
        for _ in range(2):
            try:
                import {sandbox.name}.core
            except RuntimeError as error:
                print(type(error).__name__, "{sandbox.name}.core" in sys.modules)
        """
    )
    assert done.stdout == "DriftedError False\n" * 2, done.stderr


class TestForeignWrappers:
    """Somebody else's patch is never thrown away."""

    def wrap(self, core):
        inner = core.count

        def foreign():
            return inner() + 1000

        core.count = foreign
        return foreign

    def test_on_top_of_another_patch_of_ours(self, counting):
        counting.patch("second", fix="return lambda: original() + 10")
        first, second = f"{counting.patches}.off_by_one", f"{counting.patches}.second"
        activation = counting.activate()
        core = counting.core()
        activation.undo(second)
        foreign = self.wrap(core)
        activation.apply(second)
        assert core.count is foreign
        assert core.count() == 1002
        statuses = activation.status()
        assert statuses[second].state == "drifted"
        assert "as this package left it; found" in statuses[second].reason
        assert statuses[first].state == "applied"

    def test_after_a_fix_that_failed(self, counting):
        counting.patch(fix="raise LookupError")
        activation = counting.activate()
        core = counting.core()
        foreign = self.wrap(core)
        activation.on_executed(next(iter(activation.registry)), core.__name__, core)
        assert core.count is foreign

    def test_under_a_rollback_the_first_error_is_told_and_what_stays_is_named(self, counting):
        counting.write(f"{counting.name}/far.py", "")
        counting.patch(
            more=f"""
            @patch.fix("{counting.name}.far:moved", guard=lambda f: None)
            def other(original):
                return lambda: original()
            """
        )
        activation = counting.activate()
        core = counting.core()
        self.wrap(core)
        importlib.import_module(f"{counting.name}.far")
        status = only(activation)
        assert status.state == "drifted"
        assert "moved" in status.reason
        assert status.notes == (f"still in place, under somebody else's patch: {core.__name__}:count",)

    def test_one_that_only_names_ours(self, counting):
        activation = counting.activate()
        core = counting.core()
        ours = core.count

        def pretender():
            return 7

        functools.update_wrapper(pretender, ours)
        core.count = pretender
        assert only(activation).notes[0].endswith(".count, which may not call it")
        # functools.wraps has copied our mark too; it is not taken for ours.
        other = counting.activate()
        assert not any("applied by the copy" in note for note in only(other).notes)


class TestUndo:
    """Undo reaches what it can and says what it cannot."""

    def test_a_bound_copy_is_named(self, sandbox):
        sandbox.distribution(core="class Counter:\n    def count(self):\n        return 1\n")
        sandbox.patch(target=f"{sandbox.name}.core:Counter.count")
        activation = sandbox.activate()
        bound = sandbox.core().Counter().count
        activation.undo()
        assert bound() == 2
        assert "could not reach 1 reference(s) to count: a bound method of a Counter" in only(activation).notes

    def test_classes_of_an_earlier_import_are_restored_too(self, sandbox):
        sandbox.distribution(core="class Counter:\n    def count(self):\n        return 1\n")
        sandbox.patch(target=f"{sandbox.name}.core:Counter.count")
        activation = sandbox.activate()
        old = sandbox.core().Counter
        importlib.reload(sandbox.core())
        new = sandbox.core().Counter
        assert (old().count(), new().count()) == (2, 2)
        activation.undo()
        assert (old().count(), new().count()) == (1, 1)

    def test_several_at_once_are_all_or_none(self, counting):
        counting.patch("second", target=f"{counting.name}.core:tens", fix="return lambda: original() + 10")
        counting.write(f"{counting.name}/core.py", COUNT + "def tens():\n    return 10\n")
        activation = counting.activate()
        core = counting.core()
        core.tens = lambda: 0
        with pytest.raises(nrl_patches.UndoError):
            activation.undo(f"{counting.patches}.off_by_one", f"{counting.patches}.second")
        assert core.count() == 2
        assert activation.status()[f"{counting.patches}.off_by_one"].state is State.APPLIED

    def test_nested_contexts_apply_again_only_what_they_undid(self, counting):
        activation = counting.activate()
        core = counting.core()
        with activation.undo():
            with activation.undo(f"{counting.patches}.off_by_one"):
                assert core.count() == 1
            assert core.count() == 1
        assert core.count() == 2


@pytest.mark.parametrize("kind", ["staticmethod", "classmethod"])
def test_no_false_note_for_bound_kinds(sandbox, kind):
    sandbox.distribution(core=f"class Counter:\n    @{kind}\n    def count(*args):\n        return 1\n")
    sandbox.patch(target=f"{sandbox.name}.core:Counter.count")
    sandbox.core()
    activation = sandbox.activate()
    assert sandbox.core().Counter.count() == 2
    assert only(activation).notes == ()


def test_frozen_objects_are_out_of_reach_and_said(counting):
    done = counting.run(
        f"""
        import gc
        import {counting.name}.core as core
        class Alias:
            count = staticmethod(core.count)
        gc.freeze()
        from nrl_patches.engine.activation import Activation
        from nrl_patches.engine import registry
        import {counting.patches} as patches
        activation = Activation(registry.load(patches), {{}})
        activation.start()
        (status,) = activation.status().values()
        assert "objects hidden by gc.freeze() were not searched for copies of count" in status.notes[0], status
        """
    )
    assert done.returncode == 0, done.stderr


def test_what_the_interpreter_froze_of_its_own_is_no_matter(counting, monkeypatch):
    # Python 3.12.1 starts with 375 frozen tuples.
    core = counting.core()

    class Alias:
        count = core.count

    monkeypatch.setattr("gc.get_freeze_count", lambda: 375)
    status = only(counting.activate())
    assert (status.state, status.notes) == ("applied", ())
    assert (core.count(), Alias.count()) == (2, 2)


def test_what_is_frozen_is_no_matter_where_the_modules_hold_every_reference(counting):
    done = counting.run(
        f"""
        import gc, sys, types
        import {counting.name}.core as core
        copies = sys.modules["copies"] = types.ModuleType("copies")
        copies.counted = core.count
        gc.freeze()
        from nrl_patches.engine.activation import Activation
        from nrl_patches.engine import registry
        import {counting.patches} as patches
        activation = Activation(registry.load(patches), {{}})
        activation.start()
        (status,) = activation.status().values()
        assert (status.state, status.notes) == ("applied", ()), status
        assert (core.count(), copies.counted()) == (2, 2)
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_target_that_is_younger_than_the_freeze_is_not_hidden(counting):
    done = counting.run(
        f"""
        import gc
        from nrl_patches.engine.activation import Activation
        from nrl_patches.engine import registry
        import {counting.patches} as patches
        activation = Activation(registry.load(patches), {{}})
        activation.start()
        gc.freeze()
        import {counting.name}.core
        (status,) = activation.status().values()
        assert (status.state, status.notes) == ("applied", ()), status
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_broken_file_is_named_and_can_be_switched_off(counting, caplog):
    counting.write(f"{counting.patches}/broken.py", "1/0")
    counting.activate()
    assert "broken: expected a patch file; found that it cannot be loaded: " in caplog.text
    assert "broken.py: ZeroDivisionError" in caplog.text
    counting.activate(NRL_PATCHES_STRICT="1", NRL_PATCHES_DISABLE="broken")
    counting.activate(NRL_PATCHES_STRICT="1", NRL_PATCHES="0")


def test_a_required_patch_of_a_target_that_cannot_be_set(counting, monkeypatch):
    counting.patch(required=True, guard="lambda f: 'is different'")
    activation = counting.activate()

    def refuse(*_args):
        raise TypeError("immutable type")

    monkeypatch.setattr("nrl_patches.engine.outcome.block", refuse)
    assert counting.core().count() == 1
    assert "its target could not be blocked: TypeError: immutable type" in only(activation).notes


def test_strict_and_required_leave_no_blocker_behind(counting):
    counting.patch(required=True, guard="lambda f: 'is different'")
    core = counting.core()
    with pytest.raises(nrl_patches.DriftedError):
        counting.activate(NRL_PATCHES_STRICT="1")
    assert core.count() == 1


def test_activation_in_the_middle_of_a_reload(sandbox):
    sandbox.distribution()
    sandbox.patch()
    sandbox.write(
        f"{sandbox.name}/core.py",
        f"""
        import sys
        if "again" in globals():
            import {sandbox.patches} as patches
            from nrl_patches.engine.activation import Activation
            from nrl_patches.engine import registry
            activation = Activation(registry.load(patches), {{}})
            activation.start()
            assert next(iter(activation.status().values())).state == "pending"
        again = True
        def count(): return 1
        """,
    )
    done = sandbox.run(
        f"""
        import importlib
        import {sandbox.name}.core as core
        importlib.reload(core)
        (status,) = core.activation.status().values()
        assert (status.state, core.count()) == ("applied", 2), status
        """
    )
    assert done.returncode == 0, done.stderr


def test_fork_while_another_thread_changes_targets(counting):
    done = counting.run(
        f"""
        import os, signal, threading, time
        from nrl_patches.engine.slots import PROCESS_LOCK
        held, release = threading.Event(), threading.Event()
        def hold():
            with PROCESS_LOCK:
                held.set()
                release.wait(1)
        threading.Thread(target=hold).start()
        held.wait()
        from nrl_patches.engine.activation import Activation
        from nrl_patches.engine import registry
        import {counting.patches} as patches
        activation = Activation(registry.load(patches), {{}})
        child = os.fork()
        if not child:
            signal.alarm(20)
            activation.start()
            import {counting.name}.core as core
            os._exit(core.count())
        _, status = os.waitpid(child, 0)
        assert os.WEXITSTATUS(status) == 2, status
        """
    )
    assert done.returncode == 0, done.stderr


def test_fork_while_another_thread_undoes():
    done = run(
        """
        import os, signal, sys, threading
        import nrl_patches
        from nrl_patches.engine.import_hooks import withdraw
        from nrl_patches.engine.slots import PROCESS_LOCK
        held, forking = threading.Event(), threading.Event()
        def undo():
            with PROCESS_LOCK:
                held.set()
                forking.wait()
                withdraw(print)
        thread = threading.Thread(target=undo)
        thread.start()
        held.wait()
        sys.setswitchinterval(60)  # This thread goes on until it waits for a lock.
        os.register_at_fork(before=forking.set)
        signal.alarm(20)
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        thread.join()
        """
    )
    assert done.returncode == 0, done.stderr


def test_modules_that_are_no_modules(monkeypatch, counting):
    monkeypatch.setitem(sys.modules, "nrl_odd", types.SimpleNamespace(count=1))
    monkeypatch.setitem(sys.modules, "nrl_gone", None)
    counting.activate()
    assert counting.core().count() == 2
