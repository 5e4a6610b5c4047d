"""Tripwire outcomes as text, JSON, JUnit XML, Markdown and GitHub workflow commands; used by the command only.

The first line of each, where the format has lines for people, carries the verdict and the count.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from nrl_patches import __version__
from nrl_patches.tripwires.run import PASSING, Tripwire, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["FORMATS", "SCHEMA_VERSION", "as_tables", "failing", "headline"]

SCHEMA_VERSION = 1
"""Of the JSON report; raised when a field changes its meaning or goes. See schemas/tripwires-1.json."""


def failing(tripwires: Sequence[Tripwire], allowed: Collection[Verdict] = ()) -> list[Tripwire]:
    """Return the outcomes that let the run fail.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.
    """
    return [t for t in tripwires if t.verdict not in PASSING and t.verdict not in allowed]


def headline(tripwires: Sequence[Tripwire], allowed: Collection[Verdict] = ()) -> str:
    """Return the one line for people in a hurry.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.
    """
    counts = Counter(t.verdict for t in tripwires)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]) or "no patch"
    bad = len(failing(tripwires, allowed))
    return (
        f"FAILED: {bad} of {len(tripwires)} tripwires ({parts})"
        if bad
        else f"PASSED: {len(tripwires)} tripwires ({parts})"
    )


def as_text(tripwires: Sequence[Tripwire], allowed: Collection[Verdict]) -> str:
    """One row per patch, then one paragraph per patch that needs attention.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.

    Returns:
        The report, with a line feed at its end.
    """
    width = max((len(t.id) for t in tripwires), default=0)
    lines = [headline(tripwires, allowed), ""]
    lines += [f"{t.verdict:<14}{t.id:<{width}}  {t.seconds:5.1f} s" for t in tripwires]
    for t in tripwires:
        if t.next_step:
            lines += ["", f"{t.id}: {t.verdict}", f"  found:     {t.sentence}", f"  next step: {t.next_step}"]
            lines += [f"  file:      {t.file}", f"  upstream:  {t.upstream[0]}"]
    return "\n".join(lines) + "\n"


def as_tables(
    tripwires: Sequence[Tripwire], allowed: Collection[Verdict], *, everything: bool = False
) -> Iterator[RenderableType]:
    """Yield the same for a terminal, what fails first.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.
        everything: Whether what is not installed has rows too, rather than one line.
    """
    from nrl_patches import tables  # noqa: PLC0415 - the other formats do without rich

    folded = [] if everything else [t for t in tripwires if t.verdict is Verdict.NOT_INSTALLED]
    lines = [
        tables.Line(str(t.verdict), t.id, "\n".join((t.sentence, *_more(t))), short=f"{t.seconds:.1f} s")
        for t in tripwires
        if t not in folded
    ]
    yield tables.text(headline(tripwires, allowed), "bold red" if failing(tripwires, allowed) else "bold green")
    yield tables.Ledger(sorted(lines, key=lambda line: tables.rank(line.word)), ("verdict", "patch", "time", "found"))
    if folded:
        missing = [name for t in folded for name, version in t.installed.items() if version == str(t.verdict)]
        yield tables.fold((str(t.verdict) for t in folded), missing)


def as_json(tripwires: Sequence[Tripwire], allowed: Collection[Verdict]) -> str:
    """Everything, by the published schema.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.

    Returns:
        One JSON object by ``schemas/tripwires-1.json``, with a line feed at its end.
    """
    report = {
        "schema": SCHEMA_VERSION,
        "nrl_patches": __version__,
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "passed": not failing(tripwires, allowed),
        "allowed": sorted(allowed),
        "tripwires": [dataclasses.asdict(t) | {"seconds": t.seconds} for t in tripwires],
    }
    return json.dumps(report, indent=2) + "\n"


def as_junit(tripwires: Sequence[Tripwire], allowed: Collection[Verdict]) -> str:
    """One test case per patch; an allowed failure and an absent distribution are skipped cases.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.

    Returns:
        An XML document with one ``testsuite``.
    """
    bad = failing(tripwires, allowed)
    skipped = [
        t for t in tripwires if t.verdict is Verdict.NOT_INSTALLED or (t.verdict not in PASSING and t not in bad)
    ]
    suite = ET.Element(
        "testsuite",
        name="nrl-patches tripwires",
        tests=str(len(tripwires)),
        failures=str(sum(t.verdict is not Verdict.ERROR for t in bad)),
        errors=str(sum(t.verdict is Verdict.ERROR for t in bad)),
        skipped=str(len(skipped)),
        time=f"{sum(t.seconds for t in tripwires):.3f}",
    )
    for t in tripwires:
        case = ET.SubElement(suite, "testcase", classname="nrl_patches.tripwires", name=t.id, time=f"{t.seconds:.3f}")
        if t in bad:
            kind = "error" if t.verdict is Verdict.ERROR else "failure"
            ET.SubElement(case, kind, type=str(t.verdict), message=_clean(t.sentence)).text = _clean(t.next_step)
        elif t in skipped:
            ET.SubElement(case, "skipped", message=_clean(f"{t.verdict}: {t.sentence}"))
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def as_markdown(tripwires: Sequence[Tripwire], allowed: Collection[Verdict]) -> str:
    """A table, with the next step of each failing patch in its row.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.

    Returns:
        A headline and a table, in GitHub's Markdown.
    """
    lines = [f"**{headline(tripwires, allowed)}**", "", "| verdict | patch | found | next step |", "|---|---|---|---|"]
    lines += [f"| {t.verdict} | `{t.id}` | {_cell(t.sentence)} | {_cell(t.next_step)} |" for t in tripwires]
    return "\n".join(lines) + "\n"


def as_github(tripwires: Sequence[Tripwire], allowed: Collection[Verdict]) -> str:
    """One annotation per patch that needs attention; allowed ones are warnings, passing ones notices.

    Args:
        tripwires: The outcomes.
        allowed: Verdicts that do not let the run fail.

    Returns:
        The headline and one workflow command (``::error``, ``::warning``, ``::notice``) per line.
    """
    bad = failing(tripwires, allowed)
    lines = [headline(tripwires, allowed)]
    for t in tripwires:
        if t.next_step:
            level = "error" if t in bad else "notice" if t.verdict in PASSING else "warning"
            title = f"{t.id}: {t.verdict}".replace(":", "%3A").replace(",", "%2C")
            lines.append(f"::{level} title={title}::{_annotation(f'{t.sentence}. Next step: {t.next_step}')}")
    return "\n".join(lines) + "\n"


Format = Callable[[Sequence[Tripwire], Collection[Verdict]], str]

FORMATS: Mapping[str, Format] = {
    "text": as_text,
    "json": as_json,
    "junit": as_junit,
    "markdown": as_markdown,
    "github": as_github,
}


def _more(t: Tripwire) -> list[str]:
    return [f"next step: {t.next_step}", f"file: {t.file}", f"upstream: {t.upstream[0]}"] if t.next_step else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _annotation(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _clean(text: Any) -> str:
    # XML 1.0 cannot carry control characters, and a crashed probe prints what it likes.
    return "".join(c for c in str(text) if c in "\t\n\r" or c.isprintable())
