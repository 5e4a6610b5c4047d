"""What holds for every replaced callable, whatever it is: tried on the real one, by the calls that its own probe makes.

A probe that says 'absent' has seen the defect gone. So each fix is reached here in every form that its target could be
reached in, and each time the probe is asked again.
"""

import contextlib
import copy
import functools
import importlib
import inspect
import itertools
import pickle
import sys
import typing
from collections import Counter
from types import FunctionType

import nrl_patches
from nrl_patches.targets import MARK

KINDS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.ismethod)
NAMES = ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def structure(patch):
    """Yield name, problem for each structural way; the problem is None where all is well."""
    for fix in patch.fixes:
        owner, name = owner_of(fix)
        function = plain(vars(owner)[name])
        pristine = getattr(function, MARK).pristine
        method = inspect.isclass(owner)
        yield f"{fix.qualname} looks like the original", differences(function, pristine)
        yield f"{fix.qualname} is copied and pickled by name", copied(function, pristine)
        yield f"{fix.qualname} leaves the rest of its owner alone", owner_changed(patch, owner, name)
        yield f"{fix.qualname} binds the calls of the original", unbound(fix, pristine, method)
        yield f"{fix.qualname} refuses the calls that the original refuses", accepted(function, pristine)
        yield f"{fix.qualname} called in every form", called(patch, owner, name, method)
        if method:
            for when in ("before", "after"):
                yield f"{fix.qualname} by super() of a class made {when}", inherited(patch, owner, name, when)
        else:
            yield f"{fix.qualname} copied by name before", copied_before(patch, owner, name)


def owner_of(fix):
    *path, name = fix.qualname.split(".")
    return functools.reduce(getattr, path, importlib.import_module(fix.module)), name


def plain(raw):
    return raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw


def differences(function, pristine):
    """What tells the replacement from what it replaces, for those who look before they call."""
    wrong = [name for name in NAMES if getattr(function, name, None) != getattr(pristine, name, None)]
    wrong += [kind.__name__ for kind in KINDS if kind(function) != kind(pristine)]
    if inspect.signature(function) != inspect.signature(pristine):
        wrong.append("signature")
    with contextlib.suppress(NameError):  # Then nobody can ask the original either.
        hints = typing.get_type_hints(pristine)
        try:
            if typing.get_type_hints(function) != hints:
                wrong.append("type hints")
        except NameError as error:
            wrong.append(f"type hints: {error}")
    return ", ".join(wrong) or None


def copied(function, pristine):
    with contextlib.suppress(Exception):
        pickle.dumps(pristine)  # By name: that it is not found under its name any more is as good as any other answer.
    try:
        again = pickle.loads(pickle.dumps(function))
    except Exception as error:  # noqa: BLE001 - whatever it is, the original could be pickled
        return f"pickle: {error}"
    if again is not function:
        return "pickle gives another one"
    return None if copy.deepcopy(function) is function is copy.copy(function) else "deepcopy gives another one"


def owner_changed(patch, owner, name):
    now = dict(vars(owner))
    with nrl_patches.undo(patch.id):
        before = dict(vars(owner))
    others = {fix.qualname.rpartition(".")[2] for fix in patch.fixes} | {name}
    moved = {n for n in now.keys() | before.keys() if n not in others and now.get(n) is not before.get(n)}
    if moved:
        return f"changed too: {sorted(moved)}"
    if type(now[name]) is not type(before[name]):
        return f"a {type(before[name]).__name__} became a {type(now[name]).__name__}"
    return None if list(now) == list(before) else "the order of its namespace"


def bare(function):
    """The signature that a function has by its code, whatever it says of itself."""
    code = FunctionType(function.__code__, {}, closure=function.__closure__, argdefs=function.__defaults__)
    code.__kwdefaults__ = function.__kwdefaults__
    return inspect.signature(code)


def splits(signature, first):
    """Yield every call that a signature allows, as (positional names, names by keyword)."""
    parameters = signature.parameters.values()
    by_position = [p.name for p in parameters if p.kind in BY_POSITION]
    only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    rigid = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    for count in range(max(first, len(rigid)), len(by_position) + 1):
        yield by_position[:count], by_position[count:] + only


def unbound(fix, pristine, method):
    raw, signature = bare(fix.build(pristine)), inspect.signature(pristine)
    needed = {p.name for p in signature.parameters.values() if p.default is p.empty}
    wrong = []
    for positional, keywords in splits(signature, int(method)):
        for given in (keywords, [name for name in keywords if name in needed]):
            try:
                raw.bind(*positional, **dict.fromkeys(given))
            except TypeError as error:
                wrong.append(f"({', '.join([*positional, *(f'{name}=' for name in given)])}): {error}")
    return "; ".join(wrong) or None


def accepted(function, pristine):
    """A call without what the original cannot do without, and one with a parameter that nobody has."""
    signature, wrong = inspect.signature(pristine), []
    for args, kwargs in (((), {}), ((), {"no_such_parameter": 1}), ((None,) * 50, {})):
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            try:
                function(*args, **kwargs)
            except Exception:  # noqa: BLE001, S112 - a method may stumble over what stands for its object before
                continue
            wrong.append(f"{len(args)} arguments, {kwargs}: nothing raised")
    return "; ".join(wrong) or None


class Forms:
    """Makes each call that comes in in the next of some forms, and all further ones in the last.

    Attributes:
        calls: How many calls have come in.
    """

    def __init__(self, function, forms):
        self.function, self.signature = function, inspect.signature(function)
        self.forms, self.calls = forms, 0

    def call(self, *args, **kwargs):
        (positional, _), which = self.forms[min(self.calls, len(self.forms) - 1)]
        self.calls += 1
        bound = self.signature.bind(*args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        args, kwargs = rewritten(bound, positional, given if which == "given" else set(bound.arguments))
        return self.function(*args, **kwargs)


def rewritten(bound, positional, given):
    """Return the arguments of the same call with these by position, as far as they are needed, and the rest by keyword."""
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    arguments = dict(bound.arguments)
    variadic = {kind: arguments.pop(name, ()) for name, kind in kinds.items() if kind in VARIADIC}
    rest = variadic.get(inspect.Parameter.VAR_POSITIONAL, ())
    if rest:
        positional = [name for name, kind in kinds.items() if kind in BY_POSITION]
    needed = max((index + 1 for index, name in enumerate(positional) if rest or name in given), default=0)
    args = [arguments.pop(name) for name in positional[:needed]]
    keywords = {name: value for name, value in arguments.items() if name in given}
    return [*args, *rest], keywords | dict(variadic.get(inspect.Parameter.VAR_KEYWORD, ()))


def called(patch, owner, name, method):
    """Rewrite each call that the probe makes into the next form, until every form has been used."""
    signature = inspect.signature(plain(vars(owner)[name]))
    forms = list(itertools.product(splits(signature, int(method)), ("given", "all")))
    problems, made = [], 0
    while made < len(forms):
        problem, count = asked_in_forms(patch, owner, name, forms[made:])
        if not count:
            return "the probe does not call it"
        if problem:
            shown = [f"{len(positional)} by position, {which}" for (positional, _), which in forms[made : made + count]]
            with nrl_patches.undo(patch.id):
                refused, _ = asked_in_forms(patch, owner, name, forms[made:])
            # What the original refuses too is its own: a decorator that knows a parameter by keyword only.
            if refused != problem:
                problems.append(f"{shown}: {problem}; without the patch: {refused}")
        made += count
    return "; ".join(problems[:2]) or None


def asked_in_forms(patch, owner, name, forms):
    """Ask the probe, whose calls take the forms one by one; return what is wrong, and how many calls there were."""
    function = plain(vars(owner)[name])
    made = Forms(function, forms)

    def apart(*args, **kwargs):
        return made.call(*args, **kwargs)

    functools.update_wrapper(apart, function)
    del apart.__wrapped__  # It is followed by whoever unwraps, past this.
    with replaced(function, apart, owner, name):
        return asked(patch), made.calls


def asked(patch):
    """Ask the probe, and return what is wrong with its answer."""
    try:
        seen = patch.observe()
    except Exception as error:  # noqa: BLE001 - whatever a release raises
        return f"{type(error).__name__}: {error}"[:300]
    return f"the defect is back: {dict(seen.evidence)}" if seen.present else None


@contextlib.contextmanager
def replaced(old, new, owner, name):
    """Put something in the place of a function or class, also where modules hold it by name."""
    held = [
        (module, key)
        for module in list(sys.modules.values())
        for key, value in list(getattr(module, "__dict__", {}).items())
        if value is old
    ]
    raw = vars(owner)[name]
    setattr(owner, name, new if type(raw) is type(new) or inspect.isclass(new) else type(raw)(new))
    for module, key in held:
        setattr(module, key, new)
    try:
        yield
    finally:
        for module, key in held:
            setattr(module, key, old)
        setattr(owner, name, raw)


def inherited(patch, owner, name, when):
    """A subclass that calls ``super()``, in its base's place while the probe runs, reaches the fix once by each call."""
    with nrl_patches.undo(patch.id) if when == "before" else contextlib.nullcontext():
        kind, calls = subclass(owner, name)
    code = plain(vars(owner)[name]).__code__

    def count(frame, event, _):
        if event == "call" and frame.f_code is code:
            calls["the fix"] += 1

    with replaced(owner, kind, sys.modules[owner.__module__], owner.__name__):
        sys.setprofile(count)
        try:
            problem = asked(patch)
        finally:
            sys.setprofile(None)
    if problem is None and not calls["super()"]:
        problem = "the probe does not call it"
    if problem is None and calls["the fix"] not in {calls["super()"], calls["super()"] * layers(owner, name)}:
        problem = f"calls: {dict(calls)}"
    return problem


def subclass(owner, name):
    calls = Counter()

    def method(first, *args, **kwargs):
        calls["super()"] += 1
        return getattr(super(kind, first), name)(*args, **kwargs)

    # In its base's module: transformers reads the source of the module that a model's class is from.
    space = {"__module__": owner.__module__, name: method}
    kind = type(owner)(f"Renamed{owner.__name__}", (owner,), space)
    return kind, calls


def layers(owner, name):
    """How many patches share the target: two of them may be the same function twice."""
    return len(getattr(plain(vars(owner)[name]), MARK).ids)


def copied_before(patch, owner, name):
    holder = sys.modules.setdefault("ways_holder", type(sys)("ways_holder"))
    with nrl_patches.undo(patch.id):
        holder.copy = getattr(owner, name)
    reached = holder.copy is getattr(owner, name)
    del holder.copy
    return None if reached else "keeps what it had"
