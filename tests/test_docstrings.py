"""The docstrings of public functions say what goes in, what comes out and what is raised, in Google style.

ruff's pydocstyle rules check the form, and by D417 that a section of arguments is complete; they do not ask for one.
"""

import ast
import re

import pytest
from standins import ROOT

FROM_ELSEWHERE = {"find_spec", "exec_module", "create_module"}
"""Methods that other packages define and document: those of finders and loaders."""

SAYS_WHAT_IT_RETURNS = ("Return", "Yield", "Whether", "Build")
"""The first words of a summary that is about the return value; ``Build`` is for what the fix of a patch builds."""


def public_functions(tree):
    """Find the functions and methods of a module whose names and whose classes' names have no leading underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for name, function in public_functions(node):
                yield f"{node.name}.{name}", function
        elif isinstance(node, (ast.If, ast.Try)):
            yield from public_functions(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            decorators = {ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list}
            # The docstring of a command is its help text, that of a property is one of a value, and Patch.probe says
            # what every probe returns.
            exempt = decorators & {"command", "group", "property", "cached_property", "setter", "probe"}
            if not (node.name.startswith("_") or node.name in FROM_ELSEWHERE or exempt):
                yield node.name, node


def parameters(function):
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [a.arg for a in every if a is not None and not a.arg.startswith("_") and a.arg not in {"self", "cls"}]


def raised(node, caught=frozenset()):
    """Find the names of the exceptions that a function creates and raises; None for one that another function makes."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
        return
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        name = ast.unparse(node.exc.func).rpartition(".")[2]
        if name not in caught:
            yield name if name[0].isupper() else None
    inside = caught
    if isinstance(node, ast.Try):
        inside = caught | {n.id for handler in node.handlers for n in ast.walk(handler.type or node) if is_name(n)}
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from raised(child, inside if field == "body" else caught)


def is_name(node):
    return isinstance(node, ast.Name)


def section(docstring, *titles):
    found = re.search(rf"^(?:{'|'.join(titles)}):\n((?:[ ].*\n|\n)+)", f"{docstring}\n", re.MULTILINE)
    return found and found[1]


def lacking(function):
    """Name what the docstring of a function does not say."""
    docstring = ast.get_docstring(function) or ""
    arguments = section(docstring, "Args") or ""
    yield from (p for p in parameters(function) if not re.search(rf"^ +\*{{0,2}}{p}:", arguments, re.MULTILINE))
    errors = section(docstring, "Raises")
    for error in {name for statement in function.body for name in raised(statement)}:
        if errors is None or not re.search(rf"\b{error or ''}\b", errors):
            yield f"raises {error}"
    returns = ast.unparse(function.returns) if function.returns else "None"
    documented = docstring.startswith(SAYS_WHAT_IT_RETURNS) or section(docstring, "Returns", "Yields")
    if returns not in {"None", "NoReturn", "Iterator[None]"} and not documented:
        yield f"returns {returns}"


@pytest.mark.parametrize("file", sorted((ROOT / "nrl_patches").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_public_functions_document_arguments_errors_and_results(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {name: list(lacking(function)) for name, function in public_functions(tree)}
    assert {name: what for name, what in found.items() if what} == {}
