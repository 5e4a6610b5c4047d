"""Rewriting the source of a function in memory: everything but the edited lines is as upstream wrote it."""

import ast
import importlib
import inspect
import linecache
import pickle
import sys
import traceback

import pytest
from standins import only

import nrl_patches
from nrl_patches import DeclarationError, Edit
from nrl_patches.engine.compiled_source import compile_function, is_same
from nrl_patches.engine.rewriting import Rewrite
from nrl_patches.errors import MismatchError

SHAPES = '''
from __future__ import annotations
import functools

LIMIT = 10

def decorator(label):
    def decorate(f):
        @functools.wraps(f)
        def wrapper(*args, **kwargs):
            decorated.append(label)
            return f(*args, **kwargs)
        return wrapper
    return decorate

decorated = []
registered = []

def register(f):
    registered.append(f)
    return f

class Held:
    def __init__(self, f):
        functools.update_wrapper(self, f)
        self.f = f
    def __call__(self, x):
        return self.f(x)

def plain(x: int, /, y: Missing = 2, *rest, scale=1, **more):
    """Docstring."""
    # A comment.
    total = x + y
    return total * scale

class Base:
    def method(self, x):
        return x

class Shape(Base):
    __secret = 3

    def method(self, x):
        """Of the class."""
        x = super().method(x)
        if x:
            x = x + self.__secret
        return x

    @classmethod
    def of_class(cls, x):
        return x, cls

    @staticmethod
    def static(x):
        return x

    @decorator("outer")
    @register
    @decorator("inner")
    def wrapped(self, x):
        return x

    def counting(self, n):
        for i in range(n):
            yield i

    async def waiting(self, x):
        return x

def make(step):
    @decorator("closure")
    def counter(x):
        return x + step
    return counter

counter = make(5)

held = Held(plain)

class Inner:
    class Deep:
        def method(self, x):
            return x

def twice(x):
    x = x + 1
    if x:
        x = x + 1
    return x

if LIMIT:
    def conditional(x):
        return x

def nested(x):
    def inner(y):
        return y + 1
    return inner(x)
'''


@pytest.fixture
def shapes(sandbox):
    sandbox.distribution(shapes=SHAPES)
    return importlib.import_module(f"{sandbox.name}.shapes")


def rewritten(function, old, new):
    return Rewrite([Edit(old, new)])(function)


def test_only_the_edited_line_changes(shapes):
    new = rewritten(shapes.plain, "total = x + y", "total = x - y")
    assert shapes.plain(5, 1, scale=2) == 12
    assert new(5, 1, scale=2) == 8
    assert new(5) == 3
    assert inspect.signature(new) == inspect.signature(shapes.plain)
    assert new.__globals__ is vars(shapes)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__", "__kwdefaults__"):
        assert getattr(new, name) == getattr(shapes.plain, name)


def test_the_source_and_the_lines_of_tracebacks_are_those_that_run(shapes):
    new = rewritten(shapes.plain, "total = x + y", "checked = x\ntotal = checked / y")
    assert inspect.getsource(new) == inspect.getsource(shapes.plain).replace(
        "total = x + y", "checked = x\n    total = checked / y"
    )
    assert "# A comment." in inspect.getsource(new)
    assert inspect.getsourcelines(new)[1] == inspect.getsourcelines(shapes.plain)[1]
    with pytest.raises(ZeroDivisionError) as caught:
        new(1, 0)
    frame = traceback.extract_tb(caught.tb)[-1]
    assert frame.line == "total = checked / y"
    assert frame.lineno == inspect.getsourcelines(shapes.plain)[1] + 4
    assert frame.filename.startswith(shapes.__file__)
    if sys.version_info >= (3, 11):
        assert frame.line[frame.colno - 4 : frame.end_colno - 4] == "checked / y"


def test_its_code_has_a_file_name_of_its_own_that_depends_on_the_edit(shapes):
    names = {rewritten(shapes.plain, "total = x + y", f"total = {n}").__code__.co_filename for n in (1, 2, 2)}
    assert len(names) == 2
    assert shapes.__file__ not in names


def test_clearing_linecache_does_not_prevent_another_rewrite(shapes):
    first = rewritten(shapes.plain, "total = x + y", "total = x - y")
    linecache.clearcache()
    second = rewritten(first, "return total * scale", "return -total * scale")
    assert second(5, 1) == -4
    assert second.__code__.co_filename.count("rewritten") == 1


def test_a_method_keeps_super_and_private_names(shapes):
    new = rewritten(shapes.Shape.method, "x = x + self.__secret", "x = x - self.__secret")
    assert new(shapes.Shape(), 5) == 2


def test_an_edit_may_be_the_first_to_call_super(shapes):
    new = rewritten(shapes.Base.method, "return x", "return super().__eq__(x)")
    assert new(shapes.Base(), 1) is NotImplemented


def test_decorators_are_kept_and_not_executed_again(shapes):
    before = len(shapes.registered)
    new = rewritten(shapes.Shape.wrapped, "return x", "return x + 1")
    assert new(None, 1) == 2
    assert shapes.decorated == ["outer", "inner"]
    assert len(shapes.registered) == before
    assert inspect.unwrap(new) is not inspect.unwrap(shapes.Shape.wrapped)
    assert "return x + 1" in inspect.getsource(new)
    assert shapes.Shape.wrapped(None, 1) == 1


def test_a_decorator_without_wraps_of_another_module_is_kept_too(shapes):
    def around(method):
        def wrapped(*args):
            return method(*args), "decorated"

        return wrapped

    outer = around(shapes.Base.method)
    new = rewritten(outer, "return x", "return x + 1")
    assert (new(None, 1), outer(None, 1)) == ((2, "decorated"), (1, "decorated"))
    assert not hasattr(new, "__wrapped__")


def test_the_closure_is_shared_with_the_original(shapes):
    new = rewritten(shapes.counter, "return x + step", "return x - step")
    assert (shapes.counter(1), new(1)) == (6, -4)
    inner, original = inspect.unwrap(new), inspect.unwrap(shapes.counter)
    assert inner.__closure__[0] is original.__closure__[0]


@pytest.mark.parametrize("kind", ["counting", "waiting"])
def test_generators_and_coroutines_stay_what_they_are(shapes, kind):
    original = getattr(shapes.Shape, kind)
    old = "yield i" if kind == "counting" else "return x"
    new = rewritten(original, old, f"{old} * 2")
    assert inspect.isgeneratorfunction(new) == (kind == "counting")
    assert inspect.iscoroutinefunction(new) == (kind == "waiting")
    if kind == "counting":
        assert list(new(None, 3)) == [0, 2, 4]


def test_a_class_in_a_class_a_condition_and_an_inner_function(shapes):
    assert rewritten(shapes.Inner.Deep.method, "return x", "return -x")(None, 2) == -2
    assert rewritten(shapes.conditional, "return x", "return -x")(2) == -2
    assert rewritten(shapes.nested, "return y + 1", "return y - 1")(2) == 1


def test_an_edit_may_import_and_define_what_it_needs(shapes):
    new = rewritten(
        shapes.plain,
        "total = x + y",
        """
        import operator
        class Sums:
            by = operator.mul
            both = (by, by)
        total = Sums.both[1](x, y)
        """,
    )
    assert new(5, 3) == 15


@pytest.mark.parametrize(
    "name", ["argparse", "asyncio.events", "contextlib", "dataclasses", "enum", "inspect", "typing"]
)
def test_every_function_of_a_module_compiles_to_the_code_that_runs(name):
    module = importlib.import_module(name)
    functions = {f for f in functions_of(module) if f.__code__.co_filename == module.__file__}
    lines = inspect.getsource(module)
    differ = [f for f in functions if not is_same(compile_function(lines, f, "anew"), f.__code__)]
    assert len(functions) > 20
    assert not differ


def functions_of(module):
    """The functions of a module and of its classes, undecorated; lambdas may share a line."""
    scopes = [module, *(value for value in vars(module).values() if inspect.isclass(value))]
    raw = [getattr(value, "__func__", value) for scope in scopes for value in vars(scope).values()]
    for value in raw:
        found = inspect.unwrap(value) if callable(value) else None
        if inspect.isfunction(found) and found.__module__ == module.__name__ and found.__name__ != "<lambda>":
            yield found


def test_a_syntax_transformation(shapes):
    class Subtract(ast.NodeTransformer):
        def visit_Add(self, _node):
            return ast.Sub()

    new = Rewrite([Subtract().visit])(shapes.plain)
    assert new(5, 1) == 4
    assert "total = x - y" in inspect.getsource(new)
    method = Rewrite([Subtract().visit])(shapes.Shape.method)
    assert method(shapes.Shape(), 5) == 2


@pytest.mark.parametrize(
    ("old", "found"),
    [
        ("total = x + z", "-total = x + z\n    +total = x + y"),
        ("total = x", "no such lines; the nearest begin in line"),
        ("return total * scale\ntotal = x + y", "no such lines"),
    ],
)
def test_lines_that_are_not_there_are_a_mismatch_that_shows_the_nearest(shapes, old, found):
    with pytest.raises(MismatchError, match="these lines exactly once") as caught:
        rewritten(shapes.plain, old, "")
    assert found in caught.value.found


def test_the_nearest_lines_are_found_by_their_number(shapes):
    with pytest.raises(MismatchError) as caught:
        rewritten(shapes.plain, "total = x + z", "")
    line = inspect.getsourcelines(shapes.plain)[1] + 3
    assert f"the nearest begin in line {line}:" in caught.value.found


def test_lines_that_are_there_twice_are_a_mismatch(shapes):
    with pytest.raises(MismatchError, match="them 2 times"):
        rewritten(shapes.twice, "x = x + 1", "x = 0")
    assert rewritten(shapes.twice, "    x = x + 1\nreturn x", "    x = 5\nreturn 7")(0) == 7


def test_code_that_is_not_that_of_the_file_is_a_mismatch(shapes):
    file = shapes.__file__
    with open(file, encoding="utf-8") as held:  # noqa: PTH123 - as an editor does
        text = held.read()
    with open(file, "w", encoding="utf-8") as held:  # noqa: PTH123
        held.write(text.replace("total = x + y", "total = x + y + 1"))
    linecache.clearcache()
    with pytest.raises(MismatchError, match="the source of the running code"):
        rewritten(shapes.plain, "return total * scale", "return 0")


def test_a_second_build_compiles_nothing_and_equal_code_of_another_file_is_told_apart(shapes, sandbox, monkeypatch):
    rewrite = Rewrite([Edit("total = x + y", "total = x - y")])
    first = rewrite(shapes.plain)
    sandbox.distribution(other=SHAPES)
    other = importlib.import_module(f"{sandbox.name}.other")
    assert other.plain.__code__ == shapes.plain.__code__
    assert inspect.getsourcefile(rewrite(other.plain)).startswith(other.__file__)
    monkeypatch.setattr("nrl_patches.engine.rewriting.compile_function", None)
    second = rewrite(shapes.plain)
    assert second is not first
    assert second.__code__ is first.__code__
    assert inspect.getsourcefile(second).startswith(shapes.__file__)


def test_without_source_it_is_a_mismatch():
    namespace = {}
    exec("def made(x):\n    return x\n", namespace)  # noqa: S102 - a function without a file
    with pytest.raises(MismatchError, match="source"):
        rewritten(namespace["made"], "return x", "return 0")
    with pytest.raises(MismatchError, match="a Python function"):
        rewritten(len, "return x", "return 0")


def test_a_decorator_that_is_no_closure_is_a_mismatch(shapes):
    with pytest.raises(MismatchError, match="decorators whose wrapper is a closure"):
        rewritten(shapes.held, "total = x + y", "total = 0")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("return total * scale", "return totl * scale", NameError),
        ("return total * scale", "yield total", TypeError),
        ("def plain(x: int, /, y: Missing = 2, *rest, scale=1, **more):", "def plain(x, y):", TypeError),
        ("return total * scale", "return (", SyntaxError),
    ],
)
def test_an_edit_with_a_mistake_raises_before_anything_is_replaced(shapes, old, new, error):
    with pytest.raises(error):
        rewritten(shapes.plain, old, new)


def test_compiled_code_traces_the_rewrite(sandbox):
    torch = pytest.importorskip("torch")
    sandbox.distribution(
        model="""
        import torch

        class Model(torch.nn.Module):
            def forward(self, x):
                y = x * 2
                return y + 1

            @torch.no_grad()
            def frozen(self, x):
                y = x * 2
                return y + 1
        """
    )
    model = importlib.import_module(f"{sandbox.name}.model").Model
    for name in ("forward", "frozen"):
        new = rewritten(getattr(model, name), "y = x * 2", "y = x * 3")
        seen = []

        def backend(graph, _inputs, seen=seen):
            seen.append(graph)
            return graph.forward

        compiled = torch.compile(new, backend=backend, fullgraph=True)
        assert compiled(model(), torch.ones(1)).item() == 4
        assert "3" in seen[0].code
        torch._dynamo.reset()


REWRITE = """
patch.rewrite({target!r}, Edit({old!r}, {new!r}), {last})
"""


def patch_file(sandbox, target, old, new, file="rewrite", last=""):
    """Write a patch file whose only fix is a rewrite, with these last arguments."""
    sandbox.patch(file, affected=f"{sandbox.name}<2", target=f"{sandbox.name}.core:count")
    written = sandbox.folder / sandbox.patches / f"{file}.py"
    text = written.read_text(encoding="utf-8")
    begin, end = text.index("@patch.fix"), text.index("@patch.probe")
    text = text[:begin] + REWRITE.format(target=target, old=old, new=new, last=last) + "\n\n" + text[end:]
    sandbox.write(written, text.replace("import Observation, Patch, mismatch", "import Edit, Observation, Patch"))


COUNT = """
class Counter:
    def count(self, x=1):
        y = x
        return y
"""


def test_a_patch_file_rewrites_a_method_and_undo_restores_it_by_identity(sandbox):
    sandbox.distribution(core=COUNT)
    target = f"{sandbox.name}.core:Counter.count"
    patch_file(sandbox, target, "y = x", "y = x + 1")
    core = sandbox.core()
    original = core.Counter.count
    activation = sandbox.activate()
    assert only(activation).state == "applied"
    assert core.Counter().count() == 2
    assert pickle.loads(pickle.dumps(core.Counter.count)) is core.Counter.count
    with activation.undo():
        assert core.Counter.count is original
    assert core.Counter().count() == 2


def test_a_rewrite_lies_below_every_replacement_and_two_rewrites_add_up(sandbox):
    sandbox.distribution(core=COUNT)
    target = f"{sandbox.name}.core:Counter.count"
    sandbox.patch("a_wrapper", target=target)
    patch_file(sandbox, target, "y = x", "y = x + 10", file="b_rewrite")
    patch_file(sandbox, target, "return y", "return y * 2", file="c_rewrite")
    activation = sandbox.activate()
    counter = sandbox.core().Counter()
    assert {str(status.state) for status in activation.status().values()} == {"applied"}
    assert counter.count() == 23
    with activation.undo(f"{sandbox.patches}.b_rewrite"):
        assert counter.count() == 3
    assert counter.count() == 23


def test_an_edit_that_does_not_match_is_drift_with_the_nearest_lines(sandbox, caplog):
    sandbox.distribution(core=COUNT)
    patch_file(sandbox, f"{sandbox.name}.core:Counter.count", "z = x", "z = x + 1")
    activation = sandbox.activate()
    counter = sandbox.core().Counter()
    status = only(activation)
    assert status.state == "drifted"
    assert "-z = x\n    +y = x" in status.reason
    assert "next step:" in status.reason
    assert counter.count() == 1
    assert "the nearest begin in line" in caplog.text


def test_two_rewrites_of_one_line_are_drift_of_the_second(sandbox):
    sandbox.distribution(core=COUNT)
    target = f"{sandbox.name}.core:Counter.count"
    patch_file(sandbox, target, "y = x", "y = x + 10", file="a_rewrite")
    patch_file(sandbox, target, "y = x", "y = x + 20", file="b_rewrite")
    activation = sandbox.activate()
    assert sandbox.core().Counter().count() == 11
    states = {patch_id[-9:]: str(status.state) for patch_id, status in activation.status().items()}
    assert states == {"a_rewrite": "applied", "b_rewrite": "drifted"}


def test_a_declaration_needs_edits_and_a_target_of_its_own():
    patch = nrl_patches.Patch(
        "nrl_patches.patches.vllm.none", affected="vllm<1", upstream=("https://x.org",), opt_out="NRL_DISABLE_NONE"
    )
    with pytest.raises(DeclarationError, match="no edits"):
        patch.rewrite("vllm.module:function")
    with pytest.raises(DeclarationError, match="one without old lines"):
        patch.rewrite("vllm.module:function", Edit("", "b"))
    patch.rewrite("vllm.module:function", Edit("a", "b"))
    with pytest.raises(DeclarationError, match="two fixes"):
        patch.rewrite("vllm.module:function", Edit("a", "b"))
    with pytest.raises(DeclarationError, match="none of the distributions"):
        patch.rewrite("other.module:function", Edit("a", "b"))
    with pytest.raises(DeclarationError, match="module:qualname"):
        patch.fix("vllm.module", guard=lambda _original: None)
