"""Writes what was measured into a checkout of this project: ranges, evidence, and the tables of releases."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from packaging.version import Version

import nrl_patches
from nrl_patches.defect import Defect
from nrl_patches.engine.affected import Affected, Range
from nrl_patches.errors import Problem
from nrl_patches.matrix.evidence import Evidence, write_whole
from nrl_patches.matrix.judgement import Judgement

__all__ = ["checkout", "in_words", "write_evidence", "write_ranges", "write_tables"]

_WIDTH = 120
_NAMES = {"vllm": "vLLM", "peft": "PEFT"}
_REPORT = ("matrix.json", "ranges.svg")


def checkout() -> Path:
    """Return the root of the checkout that this package is run from.

    Raises:
        ValueError: It is an installation, in which nothing is changed.
    """
    root = Path(nrl_patches.__file__).parents[1]
    project = root / "pyproject.toml"
    if not project.is_file() or 'name = "nrl-patches"' not in project.read_text(encoding="utf-8"):
        step = "run it in a checkout, installed with `pip install --editable`"
        raise ValueError(Problem(str(root), "a checkout of nrl-patches", "an installation", step))
    return root


def write_ranges(judgements: Iterable[Judgement]) -> list[str]:
    """Put the suggested ranges into the patch files whose declaration is wrong, and return the ids of these patches.

    What cannot be pasted, because measuring is not complete or no product of ranges fits, is left as it is.

    Args:
        judgements: What the evidence says of each declaration; the declaration in it is replaced too.

    Returns:
        The ids.
    """
    changed = []
    for judgement in judgements:
        if not judgement.objections or judgement.unmeasured or not judgement.suggestion:
            continue
        spec = importlib.util.find_spec(judgement.patch.module)
        file = Path(str(spec and spec.origin))
        write_whole(file, _with_range(file.read_text(encoding="utf-8"), judgement.suggestion))
        judgement.patch.affected = Affected(judgement.suggestion)
        changed.append(judgement.patch.id)
    return changed


def _with_range(source: str, suggestion: tuple[str, ...]) -> str:
    (value,) = (
        keyword.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Patch"
        for keyword in node.keywords
        if keyword.arg == "affected"
    )
    quoted = [f'"{text}"' for text in suggestion]
    new = quoted[0] if len(quoted) == 1 else f"({', '.join(quoted)})"
    lines = source.splitlines(keepends=True)
    first, last = lines[value.lineno - 1], lines[(value.end_lineno or value.lineno) - 1]
    # Columns count bytes.
    before, after = first.encode()[: value.col_offset].decode(), last.encode()[value.end_col_offset :].decode()
    if len(before) + len(new) + 1 > _WIDTH and len(quoted) > 1:
        new = "(\n" + "".join(f"        {text},\n" for text in quoted) + "    )"
    lines[value.lineno - 1 : value.end_lineno] = [before + new + after]
    return "".join(lines)


def write_evidence(report: Path, root: Path) -> None:
    """Copy a report into the package.

    Args:
        report: The folder of the report.
        root: The root of the checkout.
    """
    for name in _REPORT:
        shutil.copyfile(report / name, root / "nrl_patches" / "matrix" / "data" / name)


def write_tables(patches: Iterable[Defect], evidence: Evidence, root: Path) -> None:
    """Write the releases of every patch and known defect into its row: on the page of patches or that of limits.

    Args:
        patches: The patches and the known defects.
        evidence: What the index had.
        root: The root of the checkout.
    """
    rows = {patch.id: in_words(patch, evidence) for patch in patches}
    for file in (root / "nrl_patches" / "docs" / name for name in ("patches.md", "limits.md")):
        text = file.read_text(encoding="utf-8")
        for patch_id, releases in rows.items():
            row = re.compile(rf"^(\| `{re.escape(patch_id)}` \|.*\|) [^|]* \|$", re.MULTILINE)
            text = row.sub(lambda found, new=releases: f"{found[1]} {new} |", text)  # type: ignore[misc]
        write_whole(file, text)


def in_words(patch: Defect, evidence: Evidence) -> str:
    """Return the releases that a patch declares for people: the first, the last, and whether a fix ended the range.

    Args:
        patch: The patch.
        evidence: What the index had.
    """
    conjunctions = (
        " with ".join(_in_words(patch, part, evidence) for part in conjunction)
        for conjunction in patch.affected.alternatives
    )
    return ", ".join(conjunctions)


def _in_words(patch: Defect, part: Range, evidence: Evidence) -> str:
    name = part.distribution
    shown = _NAMES.get(name, name)
    inside = [version for version in evidence.finals(name) if part.releases.contains(version)]
    if not inside:
        return f"no release of {shown}"
    end = f"gone in {part.end[0]}" if part.end else "without an end"
    end = "the newest measured" if patch.affected.newest_measured(name) in inside else end
    return f"{shown} {_span(inside)} ({end if patch.measured else 'reported, not measured'})"


def _span(versions: list[Version]) -> str:
    return " to ".join(dict.fromkeys([str(versions[0]), str(versions[-1])]))
