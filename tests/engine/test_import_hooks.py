import copy
import importlib
import importlib.machinery
import importlib.util
import inspect
import pickle
import sys

import pytest
import wrapt
from standins import only, run

from nrl_patches.engine.import_hooks import call_when_executed, withdraw


def test_fires_when_the_module_is_imported(sandbox, hook):
    sandbox.distribution(core="X = 1")
    call_when_executed(f"{sandbox.name}.core", hook)
    assert not hook.calls
    core = sandbox.core()
    assert hook.calls == [core]


def test_fires_at_once_when_the_module_is_there(sandbox, hook):
    sandbox.distribution(core="X = 1")
    core = sandbox.core()
    call_when_executed(f"{sandbox.name}.core", hook)
    assert hook.calls == [core]


def test_the_same_hook_is_registered_once(sandbox, hook):
    sandbox.distribution(core="")
    call_when_executed(f"{sandbox.name}.core", hook)
    call_when_executed(f"{sandbox.name}.core", hook)
    sandbox.core()
    assert len(hook.calls) == 1


def test_fires_again_after_reload_and_second_import(sandbox, hook):
    sandbox.distribution(core="")
    call_when_executed(f"{sandbox.name}.core", hook)
    core = sandbox.core()
    importlib.reload(core)
    del sys.modules[core.__name__]
    again = sandbox.core()
    assert hook.calls == [core, core, again]
    assert again is not core


def test_a_withdrawn_hook_is_silent(sandbox, hook):
    sandbox.distribution(core="")
    call_when_executed(f"{sandbox.name}.core", hook)
    withdraw(hook)
    sandbox.core()
    assert not hook.calls


def test_survives_a_failed_import(sandbox, hook):
    sandbox.distribution(core="raise RuntimeError('first try')")
    call_when_executed(f"{sandbox.name}.core", hook)
    with pytest.raises(RuntimeError, match="first try"):
        sandbox.core()
    assert not hook.calls
    sandbox.write(f"{sandbox.name}/core.py", "second_try = True")
    assert sandbox.core().second_try
    assert len(hook.calls) == 1


def test_what_a_hook_raises_reaches_the_importer_and_a_second_import_asks_again(sandbox):
    sandbox.distribution(core="")
    answers = [RuntimeError("not yet"), None]

    def moody(_module):
        if (answer := answers.pop(0)) is not None:
            raise answer

    call_when_executed(f"{sandbox.name}.core", moody)
    with pytest.raises(RuntimeError, match="not yet"):
        sandbox.core()
    sandbox.core()
    assert not answers
    withdraw(moody)


def test_the_loader_is_what_it_would_be_without_the_hook(sandbox, hook):
    sandbox.distribution(core="def f():\n    return 1\n")
    call_when_executed(f"{sandbox.name}.core", hook)
    core = sandbox.core()
    assert type(core.__loader__) is importlib.machinery.SourceFileLoader
    assert core.__spec__.loader is core.__loader__
    assert type(core.__spec__) is importlib.machinery.ModuleSpec
    assert inspect.getsource(core.f) == "def f():\n    return 1\n"


def test_missing_modules_stay_missing(hook):
    call_when_executed("nrl_no_such_module.core", hook)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nrl_no_such_module.core")
    assert not hook.calls


def test_waits_for_a_module_that_a_frame_below_is_executing(sandbox):
    sandbox.write(
        "half.py",
        """
        from nrl_patches.engine.import_hooks import call_when_executed
        seen = []
        call_when_executed("half", lambda module: seen.append(module.end))
        assert not seen
        end = "reached"
        """,
    )
    done = sandbox.run("import half; assert half.seen == ['reached'], half.seen; print(type(half.__spec__).__name__)")
    assert (done.returncode, done.stdout) == (0, "ModuleSpec\n"), done.stderr


def test_waits_for_a_module_that_another_thread_is_executing(sandbox):
    sandbox.write(
        "slow.py",
        """
        import threading
        started, go_on = threading.Event(), threading.Event()
        import rendezvous
        rendezvous.started.set()
        assert rendezvous.go_on.wait(60)
        end = "reached"
        """,
    )
    sandbox.write(
        "rendezvous.py", "import threading\nstarted, go_on = threading.Event(), threading.Event()\nseen = []\n"
    )
    done = sandbox.run(
        """
        import threading, importlib, rendezvous
        from nrl_patches.engine.import_hooks import call_when_executed
        thread = threading.Thread(target=importlib.import_module, args=("slow",))
        thread.start()
        assert rendezvous.started.wait(60)
        call_when_executed("slow", lambda module: rendezvous.seen.append(module.end))
        assert not rendezvous.seen  # registered without blocking, not called half-way
        rendezvous.go_on.set()
        import slow  # waits for the lock: whoever gets the module gets it hooked
        assert rendezvous.seen == ["reached"]
        thread.join()
        """
    )
    assert done.returncode == 0, done.stderr


PARENT_JOINS_CHILD = """
    import importlib, threading
    thread = threading.Thread(target=importlib.import_module, args=("family.child",), daemon=True)
    thread.start()
    thread.join(20)
    finished = not thread.is_alive()
"""


def test_no_deadlock_where_a_package_joins_a_thread_that_imports_a_hooked_child(sandbox):
    sandbox.write("family/__init__.py", PARENT_JOINS_CHILD)
    sandbox.write("family/child.py", "")
    done = sandbox.run(
        """
        from nrl_patches.engine.import_hooks import call_when_executed
        seen = []
        call_when_executed("family.child", seen.append)
        import family
        assert family.finished and len(seen) == 1
        """
    )
    assert done.returncode == 0, done.stderr


def test_gets_along_with_wrapts_own_finder(sandbox, hook):
    sandbox.distribution(core="")
    name = f"{sandbox.name}.core"
    calls = []
    wrapt.register_post_import_hook(calls.append, name)  # its finder is asked before or after ours
    call_when_executed(name, hook)
    core = sandbox.core()
    assert calls == [core]
    assert hook.calls == [core]


class Impatient:
    """Finds what it is for and asks nobody else, as typeguard's finder does."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            return importlib.machinery.PathFinder.find_spec(name, path, target)
        return None


class TestFindersInFront:
    """Whoever puts a finder in front of the hooks' own, they are asked."""

    @pytest.fixture(autouse=True)
    def _as_it_was(self):
        path, finders = sys.meta_path, sys.meta_path.copy()
        yield
        path[:] = finders
        sys.meta_path = path

    @staticmethod
    def insert(finder):
        sys.meta_path.insert(0, finder)

    @staticmethod
    def change_all(finder):
        sys.meta_path[:] = [finder, *sys.meta_path]

    @staticmethod
    def change_all_to_what_was_before(finder):
        sys.meta_path[:] = [finder, importlib.machinery.PathFinder]

    @pytest.mark.parametrize("put", [insert, change_all, change_all_to_what_was_before])
    def test_the_hook_is_called(self, sandbox, hook, put):
        sandbox.distribution(core="")
        call_when_executed(f"{sandbox.name}.core", hook)
        put(Impatient(sandbox.name))
        core = sandbox.core()
        assert hook.calls == [core]

    def test_their_positions_are_their_own_affair(self, sandbox, hook):
        sandbox.distribution(core="", other="")
        call_when_executed(f"{sandbox.name}.core", hook)
        call_when_executed(f"{sandbox.name}.other", hook)
        finder = Impatient(sandbox.name)
        sys.meta_path.insert(0, finder)
        core = sandbox.core()
        assert sys.meta_path[0] is finder
        assert sys.meta_path.pop(0) is finder
        other = importlib.import_module(f"{sandbox.name}.other")
        assert hook.calls == [core, other]

    def test_every_finder_is_asked_once(self, hook):
        call_when_executed("nrl_nowhere", hook)
        asked = []

        class Curious:
            @staticmethod
            def find_spec(name, _path=None, _target=None):
                asked.append(name)

        sys.meta_path.insert(0, Curious)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("nrl_nowhere.at_all")
        assert asked.count("nrl_nowhere") <= 2  # by ours where somebody waits, and by the import system
        finders = list(sys.meta_path)
        assert len(finders) == len({id(finder) for finder in finders})

    @pytest.mark.parametrize("kept", [True, False])
    def test_what_another_list_let_through_is_noticed(self, counting, kept):
        counting.write("unrelated.py", "")
        activation = counting.activate()
        finders = sys.meta_path.copy() if kept else [importlib.machinery.PathFinder]
        sys.meta_path = [Impatient(counting.name), *finders]
        core = counting.core()
        assert core.count() == 1
        if kept:  # The next import that their finder is not for asks ours.
            importlib.import_module("unrelated")
            del sys.modules["unrelated"]
            assert core.count() == 2
        status = only(activation)
        assert core.count() == 2
        assert "was imported past the import hook" in status.notes[0]
        del sys.modules[core.__name__]
        assert counting.core().count() == 2

    def test_typeguard(self, counting):
        typeguard = pytest.importorskip("typeguard")
        activation = counting.activate()
        with typeguard.install_import_hook(counting.name):
            core = counting.core()
        assert type(core.__loader__).__name__ == "TypeguardLoader"
        assert core.count() == 2
        assert only(activation).notes == ()


class TestCopiesOfALoader:
    """What waits for the import of a target can be copied and pickled as if nobody waited."""

    @pytest.fixture
    def spec(self, sandbox, hook):
        sandbox.distribution(core="")
        call_when_executed(f"{sandbox.name}.core", hook)
        return importlib.util.find_spec(f"{sandbox.name}.core")

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
    def test_a_copy_is_observed_as_well(self, spec, hook, duplicate):
        assert isinstance(duplicate(spec.loader), importlib.machinery.SourceFileLoader)
        again = duplicate(spec)
        assert again == spec
        module = importlib.util.module_from_spec(again)
        sys.modules[again.name] = module
        again.loader.exec_module(module)
        assert hook.calls == [module]
        assert type(module.__loader__) is importlib.machinery.SourceFileLoader

    def test_a_pickle_is_that_of_the_loader_itself(self, spec):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(spec, protocol)
            assert b"nrl_patches" not in data
            again = pickle.loads(data)
            assert type(again.loader) is importlib.machinery.SourceFileLoader
            assert (again.name, again.loader.path) == (spec.name, spec.loader.path)

    def test_so_can_the_spec_of_a_module_that_is_being_executed(self, sandbox):
        sandbox.write(
            "half.py",
            """
            import copy, pickle
            from nrl_patches.engine.import_hooks import call_when_executed
            seen = []
            call_when_executed("half", seen.append)
            copies = [pickle.loads(pickle.dumps(__spec__)), copy.copy(__spec__), copy.deepcopy(__spec__)]
            """,
        )
        done = sandbox.run("import half; print(*{type(spec).__name__ for spec in half.copies}, len(half.seen))")
        assert (done.returncode, done.stdout) == (0, "ModuleSpec 1\n"), done.stderr


class TestWhyNotWrapt:
    """What wrapt's hook does not do. When one of these fails, wrapt has learned it: think of using it again."""

    def test_it_misses_a_reload(self, sandbox):
        sandbox.distribution(core="")
        calls = []
        wrapt.register_post_import_hook(calls.append, f"{sandbox.name}.core")
        importlib.reload(sandbox.core())
        assert len(calls) == 1

    def test_it_fires_on_a_half_executed_module(self, sandbox):
        sandbox.write(
            "half.py",
            "import wrapt\nseen = []\n"
            "wrapt.register_post_import_hook(lambda m: seen.append(hasattr(m, 'end')), 'half')\nend = 1\n",
        )
        done = run("import half; print(half.seen)", path=[sandbox.folder])
        assert done.stdout == "[False]\n", done.stderr

    def test_it_deadlocks_where_a_package_joins_a_thread_that_imports_a_hooked_child(self, sandbox):
        sandbox.write("family/__init__.py", PARENT_JOINS_CHILD.replace("20", "2"))
        sandbox.write("family/child.py", "")
        code = (
            "import wrapt; wrapt.register_post_import_hook(id, 'family.child'); import family; print(family.finished)"
        )
        done = run(code, path=[sandbox.folder])
        assert done.stdout == "False\n", done
