"""What others did to a target after it was patched, and what a status says of it."""

import importlib

import pytest
from standins import only

COUNTERS = """
class Counter:
    def count(self):
        return 1

class Double(Counter):
    "Upstream's own: it has such a method in the unpatched release."
    def count(self):
        return 10
"""

FRAMEWORK = """
import functools
from {name}.core import Counter

def wrap(function):
    @functools.wraps(function)
    def count(self):
        return function(self)
    return count

class Unrelated:
    def count(self):
        return 1

class Emptied:
    pass

class Copied(Counter):
    def count(self):
        return 1

class Inheriting(Counter):
    pass

class BelowInheriting(Inheriting):
    def count(self):
        return 1

class CallingSuper(Counter):
    def count(self):
        return super().count() + 10

class CallingByName(Counter):
    def count(self):
        return Counter.count(self) + 10

class CallingInAClosure(Counter):
    def count(self):
        def inner():
            return Counter.count(self)
        return inner()

class Wrapping(Counter):
    count = wrap(Counter.count)
"""

CALLING_OURS = ["Inheriting", "CallingSuper", "CallingByName", "CallingInAClosure", "Wrapping"]


@pytest.fixture
def counters(sandbox):
    sandbox.distribution("1.0", core=COUNTERS)
    sandbox.patch(target=f"{sandbox.name}.core:Counter.count")
    return sandbox


@pytest.fixture
def framework(counters):
    """Import another package that has a class of that name only, and return the class."""
    package = f"{counters.name}_framework"
    source = FRAMEWORK.format(name=counters.name)
    parts = source.split("\nclass ")
    classes = {part.partition("(")[0].partition(":")[0]: f"\nclass {part}" for part in parts[1:]}

    def take(name, *, below=""):
        counters.write(f"{package}.py", parts[0] + (classes[below] if below else "") + classes[name])
        return getattr(importlib.import_module(package), name)

    return take


@pytest.mark.parametrize("name", ["Unrelated", "Copied"])
def test_a_class_that_was_replaced_as_a_whole_has_drifted(counters, framework, name):
    activation = counters.activate()
    core = counters.core()
    core.Counter = framework(name)
    status = only(activation)
    assert status.state == "drifted"
    assert (
        status.reason == f"{core.__name__}:Counter.count was replaced since by {counters.name}_framework.{name}.count"
    )


def test_so_has_one_whose_replacement_has_no_such_method_any_more(counters, framework):
    activation = counters.activate()
    counters.core().Counter = framework("Emptied")
    status = only(activation)
    assert status.state == "drifted"
    assert "no longer exists" in status.reason


@pytest.mark.parametrize("name", CALLING_OURS)
def test_a_replacement_that_still_calls_ours_has_not(counters, framework, name):
    activation = counters.activate()
    core = counters.core()
    core.Counter = framework(name)
    assert core.Counter().count() % 10 == 2
    status = only(activation)
    assert (status.state, status.notes) == ("applied", ())


@pytest.mark.parametrize("made_before", [True, False])
def test_a_subclass_that_copied_the_method_is_named(counters, framework, made_before):
    kept = framework("Copied") if made_before else None
    activation = counters.activate()
    kept = kept or framework("Copied")
    assert kept().count() == 1
    status = only(activation)
    assert status.state == "applied"
    assert status.notes == (f"{counters.name}_framework.Copied overrides Counter.count and does not call it",)


def test_so_is_one_below_a_subclass_that_inherits(counters, framework):
    activation = counters.activate()
    kept = framework("BelowInheriting", below="Inheriting")
    assert kept().count() == 1
    name = f"{counters.name}_framework.BelowInheriting"
    assert only(activation).notes == (f"{name} overrides Counter.count and does not call it",)


@pytest.mark.parametrize("name", CALLING_OURS)
def test_a_subclass_that_calls_ours_is_not(counters, framework, name):
    activation = counters.activate()
    kept = framework(name)
    assert kept().count() % 10 == 2
    assert only(activation).notes == ()


def test_upstreams_own_subclasses_are_upstreams_affair(counters):
    activation = counters.activate()
    assert counters.core().Double().count() == 10
    assert only(activation).notes == ()


def test_what_took_the_place_of_two_patches_is_told_of_both(counters):
    counters.patch("second", target=f"{counters.name}.core:Counter.count")
    activation = counters.activate()
    core = counters.core()
    core.Counter.count = lambda _self: 7
    first, second = (f"{counters.patches}.{name}" for name in ("off_by_one", "second"))
    activation.apply(first)
    assert core.Counter().count() == 8
    statuses = activation.status()
    assert (statuses[first].state, statuses[second].state) == ("applied", "drifted")
    activation.apply(second)
    assert core.Counter().count() == 9
