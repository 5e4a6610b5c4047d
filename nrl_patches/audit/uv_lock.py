"""The combinations of releases that a ``uv.lock`` allows: extras and groups of the project that may exclude each other.

uv writes every release that some combination needs into one lock, and says by markers on the dependencies which one
belongs to which: ``extra == 'extra-7-nemo-rl-vllm'`` holds if the extra ``vllm`` of the package ``nemo-rl`` (seven
characters) was asked for.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from packaging.markers import Marker, default_environment
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

__all__ = ["combinations"]

_MOST = 512
"""Combinations of excluding extras that are tried; a lock with more of them is answered extra by extra."""

_EXTRA = re.compile(r"""extra\s*(?P<op>==|!=)\s*(?P<quote>['"])(?P<name>[^'"]+)(?P=quote)""")
_TRUE, _FALSE = "os_name != 'none'", "os_name == 'none'"

Package = Mapping[str, Any]


class _Choice(NamedTuple):
    kind: str
    name: str

    def marker(self, package: str) -> str:
        return f"{self.kind}-{len(package)}-{package}-{self.name}"

    def __str__(self) -> str:
        return f"--{self.kind} {self.name}"


def combinations(
    lock: Mapping[str, Any], distributions: frozenset[str]
) -> list[tuple[str, dict[str, Version | None], tuple[str, ...]]]:
    """Return the environments that a lock describes: a label, the releases, and what was left out.

    Of the combinations that agree in all distributions that matter, the one with the shortest label is returned. Tried
    are: no extra, each extra and group alone, and the largest sets of which none excludes another.

    Args:
        lock: The content of the file.
        distributions: The canonical names that matter.

    Raises:
        ValueError: There is no project in it.
    """
    reader = _Lock(lock)
    found: dict[tuple[tuple[str, str], ...], tuple[str, dict[str, Version | None], tuple[str, ...]]] = {}
    for root in reader.roots:
        choices, remarks = reader.choices(root)
        for chosen in sorted(choices, key=lambda c: (len(c), [str(choice) for choice in c])):
            releases = reader.resolve(root, frozenset(chosen))
            key = tuple((name, str(releases[name])) for name in sorted(releases) if name in distributions)
            label = " ".join(map(str, chosen))
            if len(reader.roots) > 1:
                label = f"{root['name']} {label}".rstrip()
            found.setdefault(key, (label, releases, remarks))
    return list(found.values())


class _Lock:
    def __init__(self, lock: Mapping[str, Any]) -> None:
        self.packages: dict[str, list[Package]] = {}
        for package in lock.get("package", ()):
            self.packages.setdefault(canonicalize_name(package["name"]), []).append(package)
        self.conflicts = lock.get("conflicts", ())
        own = [
            p
            for versions in self.packages.values()
            for p in versions
            if {"editable", "virtual"} & p.get("source", {}).keys()
        ]
        here = [p for p in own if "." in p["source"].values()]
        self.roots = here or own
        if not self.roots:
            raise ValueError("no project in it: no package whose source is `editable` or `virtual`")
        self.environment = _environment(lock.get("requires-python", ""))
        self.known: dict[tuple[str, frozenset[str]], bool] = {}

    def choices(self, root: Package) -> tuple[list[tuple[_Choice, ...]], tuple[str, ...]]:
        name = root["name"]
        every = [_Choice("extra", extra) for extra in root.get("optional-dependencies", ())]
        every += [_Choice("group", group) for group in root.get("dev-dependencies", ())]
        excluded = {frozenset(pair) for group in self.conflicts for pair in itertools.combinations(_of(group, name), 2)}
        bound = [choice for choice in every if any(choice in pair for pair in excluded)]
        free = [choice for choice in every if choice not in bound]
        largest = list(itertools.islice(_largest(bound, excluded), _MOST + 1))
        remarks = () if len(largest) <= _MOST else (f"more than {_MOST} combinations: each extra was looked at alone",)
        together = [] if remarks else [(*free, *chosen) for chosen in largest]
        return list(dict.fromkeys([(), *((choice,) for choice in every), *together])), remarks

    def resolve(self, root: Package, chosen: frozenset[_Choice]) -> dict[str, Version | None]:
        active = frozenset(choice.marker(root["name"]) for choice in chosen)
        todo = list(root.get("dependencies", ()))
        for choice in chosen:
            todo += root.get("optional-dependencies" if choice.kind == "extra" else "dev-dependencies", {}).get(
                choice.name, ()
            )
        releases: dict[str, Version | None] = {}
        seen: set[tuple[str, str, str]] = set()
        while todo:
            dependency = todo.pop()
            if not self._holds(dependency.get("marker", ""), active):
                continue
            package = self._package(dependency)
            if package is None:
                continue
            for extra in ("", *dependency.get("extra", ())):
                key = (package["name"], str(package.get("version", "")), extra)
                if key not in seen:
                    seen.add(key)
                    todo += (
                        package.get("optional-dependencies", {}).get(extra, ())
                        if extra
                        else package.get("dependencies", ())
                    )
            version = package.get("version")
            releases[canonicalize_name(package["name"])] = Version(version) if version else None
        return releases

    def _package(self, dependency: Mapping[str, Any]) -> Package | None:
        versions = self.packages.get(canonicalize_name(dependency["name"]), ())
        wanted = {key: dependency[key] for key in ("version", "source") if key in dependency}
        return next((p for p in versions if all(p.get(key) == value for key, value in wanted.items())), None)

    def _holds(self, marker: str, active: frozenset[str]) -> bool:
        if not marker:
            return True
        names = frozenset(found["name"] for found in _EXTRA.finditer(marker))
        key = (marker, names & active)
        if key not in self.known:

            def decided(found: re.Match[str]) -> str:
                return _TRUE if (found["name"] in active) == (found["op"] == "==") else _FALSE

            self.known[key] = Marker(_EXTRA.sub(decided, marker)).evaluate(self.environment)
        return self.known[key]


def _of(group: Iterable[Mapping[str, str]], package: str) -> list[_Choice]:
    own = [item for item in group if item.get("package") == package]
    return [_Choice(kind, item[kind]) for item in own for kind in ("extra", "group") if kind in item]


def _largest(choices: Sequence[_Choice], excluded: set[frozenset[_Choice]]) -> Iterator[tuple[_Choice, ...]]:
    """Yield the sets of choices that exclude none of each other, and to which no other can be added."""
    allowed = {c: {o for o in choices if o != c and frozenset((c, o)) not in excluded} for c in choices}

    def extend(
        chosen: tuple[_Choice, ...], candidates: set[_Choice], done: set[_Choice]
    ) -> Iterator[tuple[_Choice, ...]]:
        if not candidates and not done:
            yield chosen
        for choice in sorted(candidates):
            yield from extend((*chosen, choice), candidates & allowed[choice], done & allowed[choice])
            candidates = candidates - {choice}
            done = done | {choice}

    yield from extend((), set(choices), set())


def _environment(requires_python: str) -> dict[str, str]:
    environment: dict[str, str] = {**default_environment()}  # type: ignore[dict-item]
    wanted = SpecifierSet(requires_python)
    if environment["python_full_version"] not in wanted:
        # The lock is for another Python than ours: the oldest that it allows.
        bounds = [
            Version(part.version) for part in wanted if part.operator in {">=", "==", "~="} and "*" not in part.version
        ]
        oldest = max(bounds, default=Version(environment["python_full_version"]))
        environment["python_version"] = f"{oldest.major}.{oldest.minor}"
        environment["python_full_version"] = ".".join(map(str, (*oldest.release, 0, 0)[:3]))
    return environment
