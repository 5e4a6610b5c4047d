import functools
import gc
import importlib
import inspect
import pickle
import re
import sys
import types

import pytest
import wrapt

import nrl_patches
from nrl_patches.engine import layers, slots
from nrl_patches.engine.targets import locate

SHAPES = """
import functools

def decorator(f):
    @functools.wraps(f)
    def wrapper(*args, **kwargs):
        return f(*args, **kwargs)
    wrapper.label = "upstream's own"
    return wrapper

def knows_itself(f):
    @functools.wraps(f)
    def wrapper(self, x):
        assert type(self).outermost is wrapper
        return f(self, x)
    return wrapper

class Base:
    def inherited(self, x: int = 1) -> int:
        "Base's."
        return x

class Shape(Base):
    def method(self, x: int, *, scale: int = 1) -> int:
        "Docstring."
        return x * scale

    @staticmethod
    def static(x):
        return x

    @classmethod
    def of_class(cls, x):
        assert cls is Shape or issubclass(cls, Shape)
        return x

    @decorator
    def decorated(self, x):
        return x

    @knows_itself
    def outermost(self, x):
        return x

    alias = method

    class Inner:
        def method(self, x):
            return x

class Sub(Shape):
    pass

class Twin:
    method = Shape.method

def function(x):
    return x
"""

TARGETS = {
    "Shape.method": lambda m: m.Shape().method(1),
    "Shape.static": lambda m: m.Shape.static(1),
    "Shape.of_class": lambda m: m.Sub.of_class(1),
    "Shape.decorated": lambda m: m.Shape().decorated(1),
    "Shape.outermost": lambda m: m.Shape().outermost(1),
    "Shape.inherited": lambda m: m.Shape().inherited(1),
    "Shape.Inner.method": lambda m: m.Shape.Inner().method(1),
    "function": lambda m: m.function(1),
}


@pytest.fixture(autouse=True)
def _old_objects_are_not_searched(monkeypatch):
    # What is older than a test's targets holds none of them, and with torch imported is most of what there is.
    gc.freeze()
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch):
    # Another test in this process may have compiled something, which every status would note.
    monkeypatch.setattr("nrl_patches.engine.slots._may_be_traced", lambda _: False)


@pytest.fixture
def shapes(sandbox):
    sandbox.distribution("1.0", core=SHAPES)
    return sandbox


def target(sandbox, qualname):
    return f"{sandbox.name}.core:{qualname}"


def raw(module, qualname):
    *path, name = qualname.split(".")
    return vars(functools.reduce(getattr, path, module)).get(name)


@pytest.mark.parametrize("qualname", TARGETS)
def test_every_kind_of_target_is_replaced_and_restored_by_identity(shapes, qualname):
    shapes.patch(target=target(shapes, qualname))
    core, call = shapes.core(), TARGETS[qualname]
    before = raw(core, qualname)
    activation = shapes.activate()
    assert call(core) == 2
    assert type(raw(core, qualname)) is (type(before) if before is not None else type(call))
    activation.undo()
    assert call(core) == 1
    assert raw(core, qualname) is before
    activation.apply()
    assert call(core) == 2


def test_an_inherited_target_leaves_the_base_class_alone(shapes):
    shapes.patch(target=target(shapes, "Shape.inherited"))
    shapes.activate()
    assert shapes.core().Base().inherited(1) == 1
    assert shapes.core().Sub().inherited(1) == 2


def test_what_introspection_sees_is_upstreams(shapes):
    shapes.patch(target=target(shapes, "Shape.method"))
    before = shapes.core().Shape.method
    shapes.activate()
    after = shapes.core().Shape.method
    assert after is not before
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(after, attribute) == getattr(before, attribute)
    assert inspect.signature(after) == inspect.signature(before)
    assert inspect.isfunction(after)
    assert not hasattr(after, "__wrapped__")
    assert pickle.loads(pickle.dumps(after)) is after


def test_attributes_of_upstreams_decorators_stay_and_dynamos_do_not(shapes):
    shapes.write(f"{shapes.name}/core.py", SHAPES + "\nShape.decorated._torchdynamo_orig_callable = 1\n")
    shapes.patch(target=target(shapes, "Shape.decorated"))
    shapes.activate()
    assert shapes.core().Shape.decorated.label == "upstream's own"
    assert not hasattr(shapes.core().Shape.decorated, "_torchdynamo_orig_callable")


def closing_over(function):
    def closure(*args):
        return function(*args)

    return closure


class TestHolders:
    """Copies of the target that were made before activation."""

    def test_by_name_copies_and_aliases(self, shapes):
        shapes.patch(target=target(shapes, "function"))
        shapes.patch("method", target=target(shapes, "Shape.method"))
        shapes.write("copies.py", f"from {shapes.name}.core import function as renamed, function\n")
        core = shapes.core()
        copies = importlib.import_module("copies")
        original = core.function
        activation = shapes.activate()
        assert copies.renamed is copies.function is core.function
        assert (copies.renamed(1), core.Shape().alias(1), core.Twin().method(1)) == (2, 2, 2)
        assert all(not status.notes for status in activation.status().values())
        activation.undo()
        assert copies.renamed is copies.function is core.function is original
        del sys.modules["copies"]

    def test_copies_made_after_activation_are_restored_too(self, shapes):
        shapes.patch(target=target(shapes, "function"))
        activation = shapes.activate()
        original = shapes.core().function.__nrl_patches__.pristine
        shapes.write("late.py", f"from {shapes.name}.core import function\n")
        late = importlib.import_module("late")
        assert late.function(1) == 2
        activation.undo()
        assert late.function is original
        del sys.modules["late"]

    def test_what_cannot_be_reached_is_named(self, shapes):
        shapes.patch(target=target(shapes, "Shape.method"))
        core = shapes.core()
        bound, partial, table = core.Shape().method, functools.partial(core.Shape.method), {"key": core.Shape.method}
        closure = closing_over(core.Shape.method)
        activation = shapes.activate()
        (status,) = activation.status().values()
        note = status.notes[0]
        assert "could not reach 4 reference(s) to Shape.method" in note
        closure_name = f"the closure of {__name__}.closing_over.<locals>.closure"
        for phrase in ("a bound method of a Shape", "a partial", "a dict under key", closure_name):
            assert phrase in note
        assert bound(1) == partial(core.Shape(), 1) == table["key"](core.Shape(), 1) == closure(core.Shape(), 1) == 1


class TestLayers:
    """Several patches on one target."""

    @pytest.fixture
    def layered(self, shapes):
        for name, amount in (("a", 1), ("b", 10), ("c", 100)):
            shapes.patch(
                name,
                target=target(shapes, "Shape.method"),
                opt_out=f"NRL_DISABLE_{name.upper()}",
                fix=f"return lambda *args, **kwargs: original(*args, **kwargs) + {amount}",
            )
        return shapes

    @pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
    def test_undo_in_any_order(self, layered, order):
        core = layered.core()
        original = core.Shape.method
        activation = layered.activate()
        total = 112
        for name in order:
            assert core.Shape().method(1) == total
            total -= {"a": 1, "b": 10, "c": 100}[name]
            activation.undo(f"{layered.patches}.{name}")
        assert core.Shape.method is original

    def test_context_manager(self, layered):
        activation = layered.activate()
        core = layered.core()
        with activation.undo(f"{layered.patches}.b"):
            assert core.Shape().method(1) == 102
            with activation.undo():
                assert core.Shape().method(1) == 1
            assert core.Shape().method(1) == 102
        assert core.Shape().method(1) == 112

    def test_an_undone_patch_stays_undone_after_a_reload(self, layered):
        activation = layered.activate()
        layered.core()
        activation.undo()
        assert importlib.reload(layered.core()).Shape().method(1) == 1
        assert {status.reason for status in activation.status().values()} == {"undone by nrl_patches.undo"}


def test_undo_before_the_target_is_imported(shapes):
    patch_id = shapes.patch(target=target(shapes, "function"))
    activation = shapes.activate()
    with activation.undo(patch_id):
        assert shapes.core().function(1) == 1
    assert shapes.core().function(1) == 2


def test_undo_of_an_unknown_id(shapes):
    shapes.patch(target=target(shapes, "function"))
    with pytest.raises(nrl_patches.UndoError, match="expected the id of a patch; found no patch of that name"):
        shapes.activate().undo("typo")


def test_a_target_that_is_inherited_from_one_that_is_patched_too(shapes):
    shapes.patch("a_base", target=target(shapes, "Base.inherited"))
    shapes.patch("b_inherited", target=target(shapes, "Shape.inherited"))
    activation = shapes.activate()
    assert (shapes.core().Base().inherited(1), shapes.core().Shape().inherited(1)) == (2, 3)
    assert [(str(status.state), status.notes) for status in activation.status().values()] == [("applied", ())] * 2
    activation.undo()
    assert (shapes.core().Base().inherited(1), shapes.core().Shape().inherited(1)) == (1, 1)


class TestStrangers:
    """Other parties on the same target."""

    def test_underneath(self, shapes):
        shapes.patch(target=target(shapes, "function"))
        shapes.write("framework.py", "def patched(x):\n    return x + 10\n")
        shapes.core().function = importlib.import_module("framework").patched
        activation = shapes.activate()
        assert shapes.core().function(1) == 12
        (status,) = activation.status().values()
        assert "on top of framework.patched, which had replaced function before" in status.notes
        del sys.modules["framework"]

    def test_a_wrapt_wrapper_underneath(self, shapes):
        shapes.patch(target=target(shapes, "Shape.method"))

        def framework_wrapper(wrapped, _instance, args, kwargs):
            return wrapped(*args, **kwargs) + 10

        wrapt.wrap_function_wrapper(shapes.core(), "Shape.method", framework_wrapper)
        activation = shapes.activate()
        assert shapes.core().Shape().method(1) == 12
        (status,) = activation.status().values()
        assert "framework_wrapper" in status.notes[0]

    @pytest.mark.parametrize("still_calls_ours", [True, False])
    def test_on_top(self, shapes, still_calls_ours):
        patch_id = shapes.patch(target=target(shapes, "function"))
        activation = shapes.activate()
        core = shapes.core()
        ours = core.function

        def wrapper(x):
            return ours(x) + 10

        def replacement(x):
            return x + 10

        theirs = wrapper if still_calls_ours else replacement
        core.function = theirs
        status = activation.status()[patch_id]
        name = f"{__name__}.{theirs.__qualname__}"
        if still_calls_ours:
            assert status.state == "applied"
            assert status.notes == (f"function was wrapped since by {name}",)
        else:
            assert status.state == "drifted"
            assert status.reason == f"{target(shapes, 'function')} was replaced since by {name}"
        with pytest.raises(nrl_patches.UndoError, match=rf"found {re.escape(name)}; next step: undo that first"):
            activation.undo(patch_id)
        assert core.function is theirs
        core.function = ours
        activation.undo(patch_id)
        assert core.function(1) == 1

    def test_undo_of_several_targets_is_all_or_none(self, shapes):
        patch_id = shapes.patch(
            target=target(shapes, "function"),
            more=f"""
            @patch.fix("{target(shapes, "Shape.method")}", guard=lambda f: None)
            def other(original):
                return lambda self, x: original(self, x) + 1
            """,
        )
        activation = shapes.activate()
        core = shapes.core()
        core.Shape.method = lambda _self, x: x
        with pytest.raises(nrl_patches.UndoError):
            activation.undo(patch_id)
        assert core.function(1) == 2


def closure_over(found):
    return lambda: found


def others(sandbox, *, installed=False):
    (fix,) = next(iter(sandbox.registry())).fixes
    slot = slots._slots[fix.target] if installed else layers.Slot(locate(sandbox.core(), fix))
    return layers._count_others(slot)


def test_a_target_that_nobody_else_refers_to_is_known_as_such(counting):
    assert others(counting) == 0
    activation = counting.activate()
    assert counting.core().count() == 2
    assert others(counting, installed=True) == 0
    activation.undo()


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize(
    "hold",
    [
        lambda core: core.count,
        lambda core: [core.count],
        lambda core: functools.partial(core.count),
        lambda core: closure_over(core.count),
        lambda core: setattr(core, "alias", core.count),
        lambda core: type("Class", (), {"count": core.count}),
    ],
    ids=["local", "list", "partial", "closure", "alias", "class"],
)
def test_whatever_else_refers_to_a_target_is_counted(counting, hold, installed):
    core = counting.core()
    activation = counting.activate() if installed else None
    held = hold(core)
    assert others(counting, installed=installed) == 1, held
    del held
    if activation:
        activation.undo()


def test_of_a_decorated_method_nothing_is_known(shapes):
    shapes.patch(target=target(shapes, "Shape.static"))
    assert others(shapes) is None


@pytest.mark.parametrize("held", [False, True])
def test_the_heap_is_searched_only_for_what_somebody_holds(counting, passes, held):
    core = counting.core()
    holder = [core.count] if held else []
    activation = counting.activate()
    assert core.count() == 2
    holder = [core.count] if held else []
    with activation.undo():
        assert core.count() == 1
    assert passes[:2] == [held, held], holder
    activation.undo()


def test_a_second_patch_of_a_target_is_no_reason_to_search(counting, passes):
    counting.patch("second", target=target(counting, "count"))
    activation = counting.activate()
    counting.core()
    assert {str(status.state) for status in activation.status().values()} == {"applied"}
    assert passes == [False, False]
    activation.undo()


@pytest.fixture
def passes(monkeypatch):
    """Whether a pass over the heap was made, for each search."""
    made = []
    search = layers.Slot._holders

    def remember(slot, site):  # Nothing here may take the callable as an argument: it would be one more holder.
        found = search(slot, site)
        made.append(found.used_gc)
        return found

    monkeypatch.setattr(layers.Slot, "_holders", remember)
    return made


@pytest.fixture
def by_name(counting, monkeypatch):
    """Another module that holds the target under a name of its own."""
    module = types.ModuleType(f"{counting.name}_copies")
    module.counted = counting.core().count
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_where_the_modules_account_for_every_reference_there_is_no_pass_over_the_heap(counting, by_name, passes):
    activation = counting.activate()
    assert (counting.core().count(), by_name.counted()) == (2, 2)
    assert passes == [False]
    activation.undo()
    assert (counting.core().count(), by_name.counted()) == (1, 1)
    assert passes == [False, False]


def test_a_copy_in_a_module_does_not_hide_a_holder_that_no_module_is(counting, by_name, passes):
    partial = functools.partial(by_name.counted)
    activation = counting.activate()
    assert (counting.core().count(), by_name.counted(), partial()) == (2, 2, 1)
    assert passes == [True]
    (status,) = activation.status().values()
    assert "could not reach 1 reference(s) to count: a partial" in status.notes


def test_a_module_that_is_known_under_two_names_counts_once(counting, by_name, passes, monkeypatch):
    monkeypatch.setitem(sys.modules, f"{by_name.__name__}_again", by_name)
    kept = [by_name.counted]
    activation = counting.activate()
    assert passes == [True]
    (status,) = activation.status().values()
    assert "could not reach 1 reference(s) to count: a list" in status.notes
    assert kept[0]() == 1


@pytest.mark.parametrize("copied", [False, True])
def test_what_somebody_keeps_of_this_packages_own_functions_hides_no_holder(counting, passes, monkeypatch, copied):
    kept = gc.get_objects()  # As who hunts for a leak, before the target is imported.
    partial = functools.partial(counting.core().count)
    if copied:
        monkeypatch.setattr(counting.core(), "alias", counting.core().count, raising=False)
    activation = counting.activate()
    assert passes == [True], len(kept)
    (status,) = activation.status().values()
    assert "could not reach 1 reference(s) to count: a partial" in status.notes
    assert partial() == 1


def test_a_copy_that_another_thread_makes_meanwhile_hides_no_holder(counting, by_name, passes):
    copy = f"setattr(__import__({by_name.__name__!r}), 'again', f)"
    counting.patch(guard=f"lambda f: {copy}")
    partial = functools.partial(by_name.counted)
    activation = counting.activate()
    assert passes == [True]
    (status,) = activation.status().values()
    assert "could not reach 1 reference(s) to count: a partial" in status.notes
    assert (by_name.again(), partial()) == (2, 1)


def test_a_copy_that_is_made_during_the_search_is_noticed(counting, by_name, passes, monkeypatch):
    find = layers.find_copies

    def find_and_copy(wanted, package):
        found = find(wanted, package)
        setattr(by_name, f"again_{package}", wanted)
        return found

    monkeypatch.setattr(layers, "find_copies", find_and_copy)
    counting.activate()
    assert passes == [True]
    assert by_name.again_() == 2


class TestReloads:
    """A target that is made anew again and again."""

    @pytest.fixture
    def reloaded(self, shapes):
        shapes.patch(target=target(shapes, "Shape.method"))
        shapes.patch("function", target=target(shapes, "function"))
        return shapes.activate(), shapes.core()

    def test_what_nobody_holds_any_more_is_not_kept(self, reloaded):
        _, core = reloaded
        for _ in range(8):
            importlib.reload(core)
        gc.collect()
        owners = [slot.site.owner for slot in gc.get_objects() if type(slot) is layers.Slot]
        assert len([owner for owner in owners if owner is core or vars(owner).get("__module__") == core.__name__]) == 2

    def test_what_somebody_still_holds_is_restored(self, reloaded, monkeypatch):
        activation, core = reloaded
        copies = types.ModuleType(f"{core.__name__}_copies")
        monkeypatch.setitem(sys.modules, copies.__name__, copies)
        copies.function, shape = core.function, core.Shape()
        for _ in range(3):
            importlib.reload(core)
        gc.collect()
        assert (copies.function(1), shape.method(1), core.function(1)) == (2, 2, 2)
        activation.undo()
        assert (copies.function(1), shape.method(1), core.function(1)) == (1, 1, 1)
