"""What holds for every replaced callable, whatever it is: tried on the real one, by the calls that its own probe makes.

A probe that says 'absent' has seen the defect gone. So each fix is reached here in every form that its target could be
reached in, and each time the probe is asked again.
"""

import contextlib
import copy
import functools
import importlib
import importlib.util
import inspect
import pickle
import re
import sys
import threading
import types
import typing

import nrl_patches
from nrl_patches.engine.targets import MARK

KINDS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.ismethod)
NAMES = ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
UNCALLED = "the probe does not call it"
BACK = "the defect is back"
PROBES = 6
"""How often a probe is asked again for the forms of a call."""

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def structure(patch):
    """Yield name, problem for each structural way; the problem is None where all is well."""
    # The statements of a module have no caller, and a rewrite of them is not undone.
    places = {fix: owner_of(fix) for fix in patch.fixes if fix.qualname and is_there(fix.module)}
    if not places:
        return
    # At once: to undo takes a search of the heap.
    with nrl_patches.undo(patch.id):
        undone = {fix: Undone(owner, name) for fix, (owner, name) in places.items()}
    uncalled = []
    for fix, (owner, name) in places.items():
        function = function_of(owner, name)
        pristine = getattr(function, MARK).pristine
        method = inspect.isclass(owner)
        yield f"{fix.qualname} looks like the original", differences(function, pristine)
        # What is bound to the class is pickled as a method of it.
        own = name in undone[fix].namespace and not isinstance(inspect.getattr_static(owner, name), classmethod)
        # accelerate's hooks of 5.13.0 to 5.15.1 do not have the name of what they lie around.
        own &= "<locals>" not in pristine.__qualname__
        yield f"{fix.qualname} is copied and pickled by name", copied(function, own=own)
        yield f"{fix.qualname} leaves the rest of its owner alone", owner_changed(undone[fix], owner, name, patch)
        yield f"{fix.qualname} binds the calls of the original", unbound(fix, pristine, method)
        yield f"{fix.qualname} refuses the calls that the original refuses", accepted(function, pristine)
        problem = called(patch, owner, name, method)
        uncalled.append(problem == UNCALLED)
        # A fix that the probe has no need of is reached by the ways of its subject.
        if not uncalled[-1]:
            yield f"{fix.qualname} called in every form", problem
            if method:
                before, after = undone[fix].below, Below(owner, name)
                yield f"{fix.qualname} by super() of a class made before", inherited(patch, owner, name, before)
                yield f"{fix.qualname} by super() of a class made after", inherited(patch, owner, name, after)
        if not method:
            held = undone[fix].holder.copy
            yield f"{fix.qualname} copied by name before", None if held is function else "keeps what it had"
    yield "the probe calls what the patch replaces", UNCALLED if all(uncalled) else None


class Undone:
    """What there was of a target while the patch was undone.

    Attributes:
        namespace: That of its owner.
        holder: A module that had taken a copy of it by name.
        below: A class that had been derived from its owner.
    """

    def __init__(self, owner, name):
        self.namespace = dict(vars(owner))
        self.holder = types.ModuleType("ways_holder")
        self.below = None
        if inspect.isclass(owner):
            self.below = Below(owner, name)
        else:
            self.holder.copy = getattr(owner, name)
            sys.modules[f"ways_holder_{id(self.holder)}"] = self.holder


class Below:
    """A class that overrides a target by a method that calls ``super()``.

    Attributes:
        calls: How often that was called.
        code: Its code.
    """

    def __init__(self, owner, name):
        self.calls = 0

        def method(first, *args, **kwargs):
            self.calls += 1
            return getattr(super(self.kind, first), name)(*args, **kwargs)

        self.code = method.__code__
        # In its base's module: transformers reads the source of the module that a model's class is from.
        binding = type(inspect.getattr_static(owner, name))
        space = {"__module__": owner.__module__, name: classmethod(method) if binding is classmethod else method}
        self.kind = type(owner)(f"Renamed{owner.__name__}", (owner,), space)


def is_there(module):
    """Whether a release has a module: a patch of several models may be about some that are newer."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def owner_of(fix):
    *path, name = fix.qualname.split(".")
    return functools.reduce(getattr, path, importlib.import_module(fix.module)), name


def function_of(owner, name):
    """The function of a target, which its owner may inherit while the patch is undone."""
    return plain(inspect.getattr_static(owner, name))


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


def copied(function, *, own):
    if copy.deepcopy(function) is not function or copy.copy(function) is not function:
        return "deepcopy gives another one"
    if not own:  # What the owner inherited is pickled under the name of a base that is not patched.
        return None
    try:
        again = pickle.loads(pickle.dumps(function))
    except Exception as error:  # noqa: BLE001 - whatever it is, the original could be pickled
        return f"pickle: {error}"
    return None if again is function else "pickle gives another one"


def owner_changed(undone, owner, name, patch):
    now, before = dict(vars(owner)), undone.namespace
    others = {fix.qualname.rpartition(".")[2] for fix in patch.fixes}
    moved = {n for n in now.keys() | before.keys() if n not in others and now.get(n) is not before.get(n)}
    if moved:
        return f"changed too: {sorted(moved)}"
    if name in before and type(now[name]) is not type(before[name]):
        return f"a {type(before[name]).__name__} became a {type(now[name]).__name__}"
    in_order = [[n for n in namespace if n not in others] for namespace in (now, before)]
    return None if in_order[0] == in_order[1] else "the order of its namespace"


def bare(function):
    """The signature that a function has by its code, whatever it says of itself."""
    code = types.FunctionType(function.__code__, {}, closure=function.__closure__, argdefs=function.__defaults__)
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
            except TypeError as error:  # noqa: PERF203 - each call for itself
                wrong.append(f"({', '.join([*positional, *(f'{name}=' for name in given)])}): {error}")
    return "; ".join(wrong) or None


def accepted(function, pristine):
    """A call without what the original cannot do without, and one with a parameter that nobody has."""
    signature, wrong = inspect.signature(pristine), []
    for args, kwargs in (((), {}), ((), {"no_such_parameter": 1}), ((None,) * 50, {})):
        try:
            signature.bind(*args, **kwargs)
        except TypeError:  # noqa: PERF203 - each call for itself
            # Whatever it raises: it may stumble over what stands for its object first.
            with contextlib.suppress(Exception):
                function(*args, **kwargs)
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
    """Return the arguments of the same call, these by position as far as is needed, the rest by keyword."""
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
    """Rewrite each call that the probe makes into the next form of those that the signature allows."""
    signature = inspect.signature(function_of(owner, name))
    ways = list(splits(signature, int(method)))
    # The ends first: where a probe makes a single call, there is no time for all that lies between.
    ways = [ways[0], ways[-1], *ways[-2:-1], *ways[1:-2]]
    forms = [(ways[0], "given"), (ways[0], "all"), (ways[1], "all"), *((way, "given") for way in ways[1:])]
    problems, made = [], 0
    for _ in range(PROBES):
        problem, count = asked_in_forms(patch, owner, name, forms[made:])
        if not count:
            return UNCALLED
        if problem:
            shown = [f"{len(positional)} by position, {which}" for (positional, _), which in forms[made : made + count]]
            with nrl_patches.undo(patch.id):
                refused, _ = asked_in_forms(patch, owner, name, forms[made:])
            # What the original refuses too is its own: a decorator that knows a parameter by keyword only.
            if refused != problem:
                problems.append(f"{shown}: {problem}; without the patch: {refused}")
        made += count
        if made >= len(forms):
            break
    return "; ".join(problems[:2]) or None


def asked_in_forms(patch, owner, name, forms):
    """Ask the probe, whose calls take the forms one by one; return what is wrong, and how many calls there were."""
    function = function_of(owner, name)
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
    return f"{BACK}: {dict(seen.evidence)}" if seen.present else None


@contextlib.contextmanager
def replaced(old, new, owner, name):
    """Put something in the place of a function or class, also where modules hold it by name."""
    held = [
        (module, key)
        for module in list(sys.modules.values())
        for key, value in list(getattr(module, "__dict__", {}).items())
        if value is old
    ]
    inherits, raw = name not in vars(owner), inspect.getattr_static(owner, name)
    setattr(owner, name, new if type(raw) is type(new) or inspect.isclass(new) else type(raw)(new))
    for module, key in held:
        setattr(module, key, new)
    try:
        yield
    finally:
        for module, key in held:
            setattr(module, key, old)
        if inherits:
            delattr(owner, name)
        else:
            setattr(owner, name, raw)


def inherited(patch, owner, name, below):
    """Put a derived class in its base's place while the probe runs: each of its calls reaches the fix once.

    There is none where the probe uses classes that were derived from the base before. Where two patches have the same
    build, what the outer one calls, perhaps several times, is not counted. What the release itself raises then is its
    own: Jamba of 4.45.0 has its layers made of the base, and asks whether they are of the class in its place.
    """
    function = function_of(owner, name)
    reached = 0

    def receiver(frame):
        # What replaces several methods has one code for all.
        first = frame.f_locals.get(frame.f_code.co_varnames[0])
        return first[0] if isinstance(first, tuple) else first

    def is_within(frame, first):
        while (frame := frame.f_back) is not None and frame.f_code is not below.code:
            if frame.f_code is function.__code__ and receiver(frame) is first:
                return True
        return False

    def count(frame, event, _):
        nonlocal reached
        if event == "call" and frame.f_code is function.__code__:
            first = receiver(frame)
            is_below = isinstance(first, below.kind) or first is below.kind
            reached += is_below and not is_within(frame, first)

    with replaced(owner, below.kind, sys.modules[owner.__module__], owner.__name__):
        sys.setprofile(count)
        threading.setprofile(count)
        try:
            problem = asked(patch)
        finally:
            threading.setprofile(None)
            sys.setprofile(None)
    if problem is not None and not problem.startswith(BACK):
        # Undone around it: what is applied again would be applied to the class in the place of the base.
        with nrl_patches.undo(patch.id), replaced(owner, below.kind, sys.modules[owner.__module__], owner.__name__):
            refused = asked(patch)
        # But for lengths: another of the forwards of the probe may be the first that raises.
        return None if re.sub(r"\d+", "", str(refused)) == re.sub(r"\d+", "", problem) else problem
    if problem is None and reached != below.calls:
        problem = f"{below.calls} calls reached the fix {reached} times"
    return problem
