"""Writes the file of a new patch, and what belongs to it in this project's checkout."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import nrl_patches
from nrl_patches.contributed import owner_of
from nrl_patches.engine.distributions import find_installed, import_package
from nrl_patches.engine.upstream_code import defined_at, module_source
from nrl_patches.errors import Problem

__all__ = ["Plan", "plan", "write"]

_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_TARGET = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        patch_id: The id that the patch will have.
        file: The patch file.
        text: Its content.
        opt_out: The variable that switches the patch off.
        root: The root of this project's checkout; None for a patch of another party.
    """

    patch_id: str
    file: Path
    text: str
    opt_out: str
    root: Path | None


def plan(
    name: str, target: str, upstream: str, affected: str = "", package: str = "", *, rewrite: bool = False
) -> Plan:
    """Prepare a new patch file without writing it.

    Args:
        name: The distribution's package, a dot, and what the patch is about: ``transformers.subject_defect``.
        target: ``module:qualname`` of what the patch replaces.
        upstream: An https link to the issue or pull request.
        affected: The releases; the installed one if empty.
        package: The package of patch files of another party; this project's own if empty.
        rewrite: Whether the patch changes lines inside the target rather than taking its place.

    Returns:
        What :func:`write` writes.

    Raises:
        ValueError: Something of it cannot be right; the message says all that is.
    """
    distribution = name.partition(".")[0].replace("_", "-")
    installed = find_installed(distribution)
    problems = []
    if not _ID.fullmatch(name):
        problems.append(f"the id needs the form distribution.subject_defect, not {name!r}")
    if not _TARGET.fullmatch(target):
        problems.append(f"--target needs the form module:qualname, not {target!r}")
    else:
        problems += _wrong_target(target, distribution)
    if not upstream.startswith("https://"):
        problems.append(f"--upstream needs an https link, not {upstream!r}")
    if not affected and (installed is None or installed.version is None):
        problems.append(f"--affected is needed, as no release of {distribution} is installed here")
    folder, owner = _folder(package, problems)
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    if file.exists():
        problems.append(f"{file} is there already")
    if problems:
        raise ValueError("; ".join(problems))
    subject = name.partition(".")[2].replace(".", "_").upper()
    opt_out = f"{owner.upper()}_DISABLE_{subject}" if owner else f"NRL_DISABLE_{subject}_PATCH"
    form = "rewrite.py.template" if rewrite else "patch.py.template"
    text = Template(resources.files(__package__).joinpath(form).read_text(encoding="utf-8")).substitute(
        affected=affected or f"{distribution}=={installed and installed.version and installed.version.public}",
        upstream=upstream,
        opt_out=opt_out,
        target=target,
        parameters=" ".join(_parameters(target)),
    )
    patch_id = f"{owner}/{name}" if owner else name
    return Plan(patch_id, file, text, opt_out, None if owner else Path(nrl_patches.__file__).parents[1])


def write(made: Plan) -> list[str]:
    """Write a patch file and, in this project's checkout, the lines that belong to it elsewhere.

    Args:
        made: What :func:`plan` returned.

    Returns:
        What remains to be done, one sentence each.
    """
    made.file.parent.mkdir(parents=True, exist_ok=True)
    if made.root is not None and not (made.file.parent / "__init__.py").exists():
        (made.file.parent / "__init__.py").write_text("", encoding="utf-8")
    made.file.write_text(made.text, encoding="utf-8")
    steps = [
        f"write the docstring, the probe and the fix in {made.file}",
        f"`nrl-patches check {made.patch_id}` until it finds nothing wrong",
    ]
    if made.root is None:
        return [*steps, f"`nrl-patches matrix --patch {made.patch_id}` measures the range"]
    _insert(
        made.root / "CHANGELOG.md", r"^### Added\n\n", f"- {made.patch_id}: what it repairs, and in which releases.\n"
    )
    docs = made.root / "nrl_patches" / "docs"
    row = f"| `{made.patch_id}` | what goes wrong | see `affected` |\n"
    _insert(docs / "patches.md", r"^\| id \| defect \| releases \|\n\|---\|---\|---\|\n", row)
    variable = f"| `{made.opt_out}` | `1` switches off `{made.patch_id}`. |\n"
    _insert(docs / "environment.md", r"^\| variable \| effect \|\n\|---\|---\|\n(\| `NRL_PATCHES.*\n)*", variable)
    return [
        *steps,
        "write the line in CHANGELOG.md and the row in nrl_patches/docs/patches.md",
        "say in tests/ways/subjects.py how its target is used",
        "`nrl-patches matrix --update` until it exits with 0: it measures and writes the range",
    ]


def _folder(package: str, problems: list[str]) -> tuple[Path, str]:
    if not package:
        root = Path(nrl_patches.__file__).parents[1]
        if not (root / "pyproject.toml").is_file():
            said = Problem(
                str(root), "a checkout of nrl-patches", "an installation", "--package names your own package"
            )
            problems.append(str(said))
        return root / "nrl_patches" / "patches", ""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        problems.append(
            f"--package: no package {package!r} on the path, to which the current directory does not belong: "
            "install its distribution with `pip install --editable`, or set PYTHONPATH"
        )
        return Path(), owner_of(package)
    return Path(next(iter(spec.submodule_search_locations))), owner_of(package.partition(".")[0])


def _wrong_target(target: str, distribution: str) -> list[str]:
    """Return what cannot be right about a target: another distribution has it, or its module has no such name."""
    module, _, qualname = target.partition(":")
    package = module.partition(".")[0]
    if package != import_package(distribution):
        return [f"--target is in {package}, so the id has to begin with {package}, whatever shows the defect"]
    source = module_source(module)
    if source is None or defined_at(target):
        return []
    *scope, name = qualname.split(".")
    around = defined_at(":".join(filter(None, (module, ".".join(scope)))))
    known = [node.name for scope in around for node in ast.walk(scope) if isinstance(node, _DEFINITIONS)]
    close = difflib.get_close_matches(name, known, n=1)
    # Names may be made as the module runs; only where one resembles it closely is it taken for a typo.
    return [f"--target: {module} does not define {qualname}; did you mean {close[0]}?"] if close else []


def _parameters(target: str) -> list[str]:
    """Return the names of the target's parameters, as its source has them; none if that is not found."""
    for node in defined_at(target):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args
            return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return []


def _insert(file: Path, after: str, line: str) -> None:
    """Insert a line behind the first match of a pattern; a file of another shape is left as it is."""
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        found = re.search(after, text, re.MULTILINE)
        if found:
            file.write_text(f"{text[: found.end()]}{line}{text[found.end() :]}", encoding="utf-8")
