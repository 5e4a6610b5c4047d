"""Tensors that a model of vLLM fills in its constructor, and that no checkpoint, or no stream of parameters, carries.

A static walk: nothing of vLLM or transformers is imported. For each release of vLLM it reads every class of
`vllm/model_executor/models` and `layers`, lists what the class holds besides weights, and looks in the modeling files
of transformers whether a model of the same family saves a tensor of that name. Rows of releases in which a tensor is
the same are folded into ranges. `nrl_patches/docs/refit.md` has the result.

    python tests/survey/constants.py --vllm FOLDER... --transformers FOLDER...

A folder of vLLM has the package `vllm` in it and is named by the release (`0.33.0`, or as the matrix names it,
`vllm-0.33.0-…`); one of transformers has the package `transformers`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import Version

NORMS = re.compile(r"(?:Sync)?BatchNorm(?:\dd)?")
STATISTICS = ("running_mean", "running_var")

NOISE = frozenset({"empty", "empty_like", "rand", "randn", "randn_like", "Tensor", "FloatTensor"})
"""What allocates a weight without a value of its own."""

PLAIN = frozenset({"zeros", "ones", "full", "zeros_like", "ones_like"})
"""What a weight that is learned starts from as well; it is a constant only if no checkpoint has it."""

KINDS = ("buffer", "statistics", "parameter", "constant parameter", "module of transformers")
"""The kinds that are printed; the others are what a dummy load leaves alone."""

IN_PLACE = frozenset({"copy_", "fill_"})
INITIALISERS = frozenset({"constant_", "zeros_", "ones_", "eye_"})

INTEGERS = frozenset({"long", "int", "int8", "int32", "int64", "uint8", "bool"})
"""How values are written that the dummy load does not fill; it fills floating-point tensors only."""

TOWER = re.compile(r"\w*(?:Model|Encoder|Tower|Decoder)(?:ForCausalLM)?|from_config|_from_config")
"""What a module of transformers is made by."""

OF_A_CONSTRUCTOR = re.compile(r"__init__|_?init_\w+|reset_parameters|_build\w*|_create\w*|_register\w*")


@dataclass(frozen=True, order=True)
class Tensor:
    """A tensor of a class.

    Attributes:
        file: The file below `model_executor`.
        owner: The class.
        name: The attribute, for a tensor of a submodule with its own name behind it.
        kind: "buffer", "buffer of integers", "non-persistent buffer", "statistics" of a batch norm, "parameter"
            (starts from zeros or ones), "constant parameter" (its constructor computes or copies a value), or "module
            of transformers", which may hold any of them.
    """

    file: str
    owner: str
    name: str
    kind: str


@dataclass
class Family:
    """What the models of one folder of transformers save.

    Attributes:
        tensors: Attributes that are parameters or persistent buffers.
        modules: Attributes that are modules.
    """

    tensors: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)


def called(node: ast.AST | None) -> str:
    """Return the last name of what a call calls, or nothing.

    Args:
        node: An expression.
    """
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def path_of_self(node: ast.AST) -> tuple[str, ...]:
    """Return the attributes of an expression such as `self.a.b`, or nothing if it is no such expression.

    Args:
        node: An expression.
    """
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return tuple(reversed(names)) if isinstance(node, ast.Name) and node.id == "self" else ()


def is_persistent(call: ast.Call) -> bool:
    """Whether a call of `register_buffer` or `Buffer` leaves the buffer in the state dict.

    Args:
        call: The call.
    """
    given = [keyword.value for keyword in call.keywords if keyword.arg == "persistent"] or call.args[
        2 if called(call) == "register_buffer" else 1 :
    ][:1]
    return not (given and isinstance(given[0], ast.Constant) and given[0].value is False)


def held_by(function: ast.AST, foreign: set[str]) -> Iterator[tuple[str, str]]:
    """Find the tensors that a method makes.

    Args:
        function: Its syntax.
        foreign: What the file has imported from transformers.

    Yields:
        The name and the kind of each; the kind is empty for a weight that has no value yet.
    """
    for node in ast.walk(function):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                path = path_of_self(target)
                if len(path) == 1:
                    yield from assigned(path[0], node.value, foreign)
        elif isinstance(node, ast.Call):
            yield from made_by(node)


def assigned(name: str, value: ast.expr, foreign: set[str]) -> Iterator[tuple[str, str]]:
    """Find the tensors of what is assigned to an attribute.

    Args:
        name: The attribute.
        value: The expression.
        foreign: What the file has imported from transformers.

    Yields:
        As :func:`held_by`.
    """
    if any(NORMS.fullmatch(called(part)) for part in ast.walk(value)):
        yield from ((f"{name}.{statistic}", "statistics") for statistic in STATISTICS)
    if is_of_transformers(value, foreign):
        yield name, "module of transformers"
    if isinstance(value, ast.Call) and called(value) == "Parameter" and value.args:
        yield name, kind_of_parameter(value.args[0])
    if isinstance(value, ast.Call) and called(value) == "Buffer":
        yield name, kind_of_buffer(value, value.args[:1])


def made_by(call: ast.Call) -> Iterator[tuple[str, str]]:
    """Find the tensor that a call registers or fills.

    Args:
        call: The call.

    Yields:
        As :func:`held_by`.
    """
    name, first = called(call), call.args[0] if call.args else None
    if name == "register_buffer" and isinstance(first, ast.Constant) and isinstance(first.value, str):
        empty = len(call.args) > 1 and isinstance(call.args[1], ast.Constant) and call.args[1].value is None
        if not empty:
            yield first.value, kind_of_buffer(call, [*call.args[1:2], *call.keywords])
        return
    filled = call.func.value if name in IN_PLACE and isinstance(call.func, ast.Attribute) else None
    set_to = first if name in INITIALISERS else None
    for tensor, kind in ((filled, "constant parameter"), (set_to, "parameter")):
        path = tuple(part for part in path_of_self(tensor) if part != "data") if tensor is not None else ()
        if path:
            yield ".".join(path), kind


def is_of_transformers(value: ast.expr, foreign: set[str]) -> bool:
    """Whether an expression makes a module of transformers.

    Args:
        value: The expression.
        foreign: What the file has imported from transformers.
    """
    for node in ast.walk(value):
        if isinstance(node, ast.Call) and TOWER.fullmatch(called(node)):
            first = node.func.value if isinstance(node.func, ast.Attribute) else node.func
            if isinstance(first, ast.Name) and first.id in foreign:
                return True
    return False


def is_of_integers(values: Iterable[ast.AST]) -> bool:
    """Whether expressions that make a tensor name a type of integers, or count without naming any.

    Args:
        values: The expressions.
    """
    nodes = [node for value in values for node in ast.walk(value)]
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return bool(named & INTEGERS) or ("arange" in named and not any("float" in name for name in named))


def kind_of_buffer(call: ast.Call, values: Iterable[ast.AST]) -> str:
    """Return the kind of a buffer, see :class:`Tensor`.

    Args:
        call: What makes it.
        values: The expressions of its value.
    """
    if not is_persistent(call):
        return "non-persistent buffer"
    return "buffer of integers" if is_of_integers(values) else "buffer"


def kind_of_parameter(value: ast.expr) -> str:
    """Tell a weight that waits for a checkpoint from a constant, by what it is made of.

    Args:
        value: The first argument of `Parameter`.

    Returns:
        Nothing for a weight that has no value yet, else the kind, see :class:`Tensor`.
    """
    makers = {called(node) for node in ast.walk(value)} - {""}
    if makers & NOISE or not makers or is_of_integers([value]):
        return ""
    return "parameter" if makers & PLAIN else "constant parameter"


def skipped_by(tree: ast.Module) -> list[str]:
    """Collect what `load_weights` compares names with before it goes on to the next one.

    Args:
        tree: The syntax of a file.

    Returns:
        All such strings.
    """
    found: list[str] = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name == "load_weights":
            for node in ast.walk(function):
                if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Continue) and len(node.body) == 1:
                    found += strings(node.test)
                elif isinstance(node, ast.keyword) and (node.arg or "").startswith("skip_"):
                    found += strings(node.value)
    return found


def is_skipped(name: str, skipped: Iterable[str]) -> bool:
    """Whether strings that `load_weights` skips mean a tensor.

    Args:
        name: The tensor.
        skipped: The strings, which may be parts of names.
    """
    if name in {"weight", "bias"}:  # What is skipped by such a name may be any tensor.
        return False
    whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    head = name.partition(".")[0]
    return any(whole.search(part) or part.strip(".").rpartition(".")[2] == head for part in skipped)


def strings(node: ast.AST) -> list[str]:
    """Return the strings in an expression.

    Args:
        node: The expression.
    """
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def parsed(source: str) -> ast.Module:
    """Parse a file.

    Args:
        source: Its text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Invalid escapes in upstream's strings.
        return ast.parse(source)


def tensors_of(release: Path) -> dict[Tensor, bool]:
    """Walk the classes of a release of vLLM.

    Args:
        release: The folder that has the package in it.

    Returns:
        Its tensors, and whether `load_weights` in the same file skips names like it.
    """
    root = release / "vllm" / "model_executor"
    found: dict[Tensor, bool] = {}
    for path in sorted([*root.glob("models/**/*.py"), *root.glob("layers/**/*.py")]):
        if "quantization" not in path.parts and "ops" not in path.parts:
            file = path.relative_to(root).as_posix()
            for owner, name, kind, skipped in tensors_in(path.read_text(encoding="utf-8")):
                found[Tensor(file, owner, name, kind)] = skipped
    return found


@functools.cache  # Most files are the same in many releases.
def tensors_in(source: str) -> list[tuple[str, str, str, bool]]:
    """Walk the classes of a file of vLLM.

    Args:
        source: Its text.

    Returns:
        The class, name and kind of each tensor, and whether `load_weights` in the file skips it.
    """
    if not any(word in source for word in ("Parameter(", "register_buffer", "BatchNorm", "_(", "transformers")):
        return []
    tree = parsed(source)
    skipped = skipped_by(tree)
    foreign = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "transformers"
        for alias in node.names
    }
    found = []
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        held: dict[str, str] = {}
        for function in owner.body:
            if isinstance(function, ast.FunctionDef) and OF_A_CONSTRUCTOR.fullmatch(function.name):
                for name, kind in held_by(function, foreign):
                    # A buffer stays one if it is filled later; a parameter that is filled becomes a constant.
                    if kind and "buffer" not in held.get(name, "") and held.get(name) != "constant parameter":
                        held[name] = kind
        for name, kind in held.items():
            found.append((owner.name, name, kind, is_skipped(name, skipped)))
    return found


def families(releases: Iterable[Path]) -> dict[str, Family]:
    """Walk the models of transformers.

    Args:
        releases: Folders that have the package in them; what any of them saves counts.

    Returns:
        By the folder of a model, without underscores, what its classes save.
    """
    found: dict[str, Family] = {}
    for release in releases:
        package = release / "transformers"
        for path in [*package.glob("models/*/modeling_*.py"), *package.glob("activations.py")]:
            folder = path.stem if path.parent == package else path.parent.name
            family = found.setdefault(folder.replace("_", ""), Family())
            for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                    names = [path[0] for path in map(path_of_self, node.targets) if len(path) == 1]
                    what = called(node.value)
                    if what == "Parameter" or (what == "Buffer" and is_persistent(node.value)):
                        family.tensors.update(names)
                    elif what != "Buffer":
                        family.modules.update(names)
                elif isinstance(node, ast.Call) and called(node) == "register_buffer" and is_persistent(node):
                    family.tensors.update(strings(node.args[0]) if node.args else [])
    return found


def carried(tensor: Tensor, known: Mapping[str, Family]) -> str:
    """Say whether a checkpoint that transformers writes has a tensor.

    Args:
        tensor: The tensor.
        known: What :func:`families` found.

    Returns:
        "yes", "no", or "not in transformers" where it has no model of that family.
    """
    stem = Path(tensor.file).stem.replace("_", "")
    names = [name for name in known if len(name) > 2 and (stem.startswith(name) or name.startswith(stem))]
    if not names:
        return "not in transformers"
    longest = max((len(name) for name in names if stem.startswith(name)), default=0)
    candidates = [known[name] for name in names if name.startswith(stem) or len(name) == longest]
    head, _, rest = tensor.name.partition(".")
    if rest:
        return "yes" if any(head in family.modules for family in candidates) else "no"
    return "yes" if any(head in family.tensors for family in candidates) else "no"


def folded(releases: Iterable[Version], order: list[Version]) -> str:
    """Write some of the releases as ranges.

    Args:
        releases: Those that are meant.
        order: All of them, oldest first.
    """
    chosen = set(releases)
    runs: list[list[Version]] = []
    before: Version | None = None
    for version in order:
        if version in chosen:
            if before not in chosen or not runs:
                runs.append([])
            runs[-1].append(version)
        before = version
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def main(arguments: list[str] | None = None) -> int:
    """Print a row per tensor: where it is, what it is, in which releases, and whether a checkpoint has it.

    Args:
        arguments: The command line; that of the process if left out.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", nargs="+", type=Path, required=True)
    parser.add_argument("--transformers", nargs="+", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    options = parser.parse_args(arguments)
    known = families(options.transformers)
    rows: dict[tuple[Tensor, bool], list[Version]] = {}
    named = ((re.search(r"\d+(?:\.\w+)+", folder.name), folder) for folder in options.vllm)
    trees = {Version(match[0]): folder for match, folder in named if match}
    for version in sorted(trees):
        for tensor, skipped in tensors_of(trees[version]).items():
            if tensor.kind in options.kinds:
                rows.setdefault((tensor, skipped), []).append(version)
    for (tensor, skipped), releases in sorted(rows.items()):
        has = carried(tensor, known)
        if tensor.kind == "parameter" and not skipped and has != "no":
            continue  # A weight that starts from zeros or ones, as far as can be told.
        place = f"{tensor.file.removesuffix('.py')} {tensor.owner}.{tensor.name}"
        how = "skipped by load_weights" if skipped else has
        if tensor.kind == "module of transformers":
            how = "what its class saves"
        print(f"{place} | {tensor.kind} | {folded(releases, sorted(trees))} | {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
