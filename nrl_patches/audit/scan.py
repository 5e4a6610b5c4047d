"""Finds workarounds in a source tree for what this package knows, by its syntax; nothing of it is executed.

Found are: assignments to a target (`module.Class.method = …`, `setattr`, `mock.patch`, wrapt), file names of targets in
string literals (sources that are rewritten on disk), `load_format="auto"`, and versions that are compared as strings.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nrl_patches.declaration import Patch

__all__ = ["Found", "scan"]

_VERSION = re.compile(r"v?\d+(\.\d+)+([abc.+-]\w+)*")
_CALLED_VERSION = re.compile(r"(^|[._])(__)?version(__)?$", re.IGNORECASE)
_PATCHERS = {"patch", "patch.object", "setattr", "wrap_function_wrapper", "patch_function_wrapper", "wrap_object"}
_DUMMY_LOAD = "vllm.dummy_load_constants"
_LONGEST = 2**22  # Bytes of a file.
_LINE = 80


@dataclass(frozen=True)
class Found:
    """One place in a source tree.

    Attributes:
        file: The file, relative to what was scanned.
        line: The line, from 1.
        kind: ``replaces a target``, ``rewrites a file``, ``load_format`` or ``version as string``.
        what: The code, shortened.
        ids: The patches that it is about.
        advice: What to do about it.
    """

    file: str
    line: int
    kind: str
    what: str
    ids: tuple[str, ...]
    advice: str


def scan(root: Path, patches: Iterable[Patch]) -> tuple[list[Found], list[str]]:
    """Scan a file or a folder.

    Args:
        root: The file or folder; hidden folders and virtual environments in it are passed over.
        patches: The patches whose targets are looked for.

    Returns:
        What was found, and what could not be read, one sentence each.

    Raises:
        ValueError: There is nothing of that name.
    """
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    known = list(patches)
    found: list[Found] = []
    problems: list[str] = []
    for file in [root] if root.is_file() else sorted(_sources(root)):
        name = str(file.relative_to(root)) if file != root else file.name
        try:
            if file.stat().st_size > _LONGEST:
                raise ValueError(f"more than {_LONGEST} bytes")  # noqa: TRY301 - said with the others
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Of somebody else's escape sequences.
                tree = ast.parse(file.read_bytes(), name)
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            problems.append(f"{name} cannot be read: {type(error).__name__}: {error}")
            continue
        found += _Scanner(name, tree, known).found()
    return found, problems


def _sources(root: Path) -> Iterator[Path]:
    for entry in root.iterdir():
        if entry.is_symlink() or entry.name.startswith(".") or entry.name in {"node_modules", "__pycache__"}:
            continue
        if entry.is_dir() and not (entry / "pyvenv.cfg").exists():
            yield from _sources(entry)
        elif entry.suffix == ".py":
            yield entry


class _Scanner:
    def __init__(self, file: str, tree: ast.AST, patches: Iterable[Patch]) -> None:
        self.file, self.tree = file, tree
        self.names = dict(_imports(tree))
        self.targets: dict[str, list[Patch]] = {}
        self.files: dict[str, list[Patch]] = {}
        self.dummy_load: list[Patch] = []
        for patch in patches:
            for fix in patch.fixes:
                self.targets.setdefault(".".join(filter(None, (fix.module, fix.qualname))), []).append(patch)
                path = fix.module.partition(".")[2].replace(".", "/")
                if "/" in path:
                    _once(self.files.setdefault(f"{path}.py", []), patch)
            if patch.id.startswith(_DUMMY_LOAD):
                self.dummy_load.append(patch)

    def found(self) -> Iterator[Found]:
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    yield from self._replaced(node, self._dotted(target))
                    if (
                        isinstance(target, ast.Subscript)
                        and _is(target.slice, "load_format")
                        and _is(node.value, "auto")
                    ):
                        yield self._load_format(node)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.Compare):
                yield from self._compare(node)
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                if any(_is(key, "load_format") and _is(value, "auto") for key, value in pairs):
                    yield self._load_format(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from self._file_name(node, node.value)

    def _call(self, node: ast.Call) -> Iterator[Found]:
        called = self._dotted(node.func)
        if any(called == name or called.endswith(f".{name}") for name in _PATCHERS):
            first = node.args[:1]
            parts = [self._dotted(a) if not isinstance(a, ast.Constant) else str(a.value) for a in node.args[:2]]
            candidates = [parts[0] if parts else "", ".".join(parts).replace(":", ".")]
            if first:
                for candidate in dict.fromkeys(candidates):
                    yield from self._replaced(node, candidate)
        if any(keyword.arg == "load_format" and _is(keyword.value, "auto") for keyword in node.keywords):
            yield self._load_format(node)

    def _replaced(self, node: ast.AST, target: str) -> Iterator[Found]:
        for known, patches in self.targets.items():
            if target == known:
                ids = tuple(patch.id for patch in patches)
                yield self._at(node, "replaces a target", ids, "; ".join(_advice(patch) for patch in patches))

    def _file_name(self, node: ast.AST, text: str) -> Iterator[Found]:
        for path, patches in self.files.items():
            if text == path or text.endswith(f"/{path}"):
                ids = tuple(patch.id for patch in patches)
                advice = "a file that is rewritten on disk is other code to us: " + "; ".join(map(_advice, patches))
                yield self._at(node, "rewrites a file", ids, advice)

    def _load_format(self, node: ast.AST) -> Found:
        ids = tuple(patch.id for patch in self.dummy_load)
        advice = "needless for Gemma, Gemma 2 and Gemma 3 from vLLM 0.9.2 on; before, these patches keep the constants"
        return self._at(node, "load_format", ids, advice)

    def _compare(self, node: ast.Compare) -> Iterator[Found]:
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            if not isinstance(op, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)):
                continue
            texts = [side for side in (left, right) if isinstance(side, ast.Constant) and _is_version(side.value)]
            others = [side for side in (left, right) if side not in texts]
            if texts and all(self._is_version_text(side) for side in others):
                advice = 'compared as strings: "5.23.0" < "5.9.0" holds; use packaging.version.Version'
                yield self._at(node, "version as string", (), advice)

    def _is_version_text(self, node: ast.AST) -> bool:
        """Whether an expression is a version that nobody has parsed: `x.__version__`, `metadata.version("x")`."""
        if isinstance(node, ast.Call):
            return self._dotted(node.func).endswith("metadata.version")
        return (
            bool(_CALLED_VERSION.search(self._dotted(node))) if isinstance(node, (ast.Attribute, ast.Name)) else False
        )

    def _dotted(self, node: ast.AST) -> str:
        """Return the full dotted name of an expression, through the imports of the file; empty if it has none."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self._dotted(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        return ""

    def _at(self, node: ast.AST, kind: str, ids: tuple[str, ...], advice: str) -> Found:
        what = " ".join(ast.unparse(node).split())
        what = what if len(what) <= _LINE else f"{what[: _LINE - 1]}…"
        return Found(self.file, getattr(node, "lineno", 0), kind, what, ids, advice)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _advice(patch: Patch) -> str:
    ends: Mapping[str, str] = {
        part.distribution: f"needless from {part.distribution} {part.end[0]} on"
        for conjunction in patch.affected.alternatives
        for part in conjunction
        if part.end is not None and not part.end[1]
    }
    until = ", or ".join(ends.values()) or f"still needed in the newest measured ({patch.affected})"
    return f"{until}; where {patch.id} is applied, it patches the same place: keep one of the two"


def _is_version(value: object) -> bool:
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def _is(node: ast.AST | None, value: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def _once(patches: list[Patch], patch: Patch) -> None:
    if patch not in patches:
        patches.append(patch)
