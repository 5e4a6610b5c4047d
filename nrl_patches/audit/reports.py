"""The answers of an audit as a table, JSON, Markdown and GitHub workflow commands."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nrl_patches import __version__
from nrl_patches.audit.answers import Hit, Repair, Row, needs_attention
from nrl_patches.audit.bump import Change, Effect
from nrl_patches.audit.pins import Pins
from nrl_patches.audit.scan import Found
from nrl_patches.engine.affected import missing_in

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["FORMATS", "SCHEMA_VERSION", "Audit", "as_tables", "as_text", "attention"]

SCHEMA_VERSION = 1
"""Of the JSON report; raised when a field changes its meaning or goes. See schemas/audit-1.json."""


_PLACE = 80
"""Columns for the name of a function with its module, which is not to be folded."""


@dataclass(frozen=True)
class Audit:
    """Everything that was asked for.

    Attributes:
        evidence: How old the evidence is, as a sentence.
        environments: Each with the answers for it.
        bumps: The environment before and after a bump, with the changes.
        workarounds: What was found in a source tree.
        problems: What could not be read there.
    """

    evidence: str
    environments: Sequence[tuple[Pins, Sequence[Row]]] = ()
    bumps: Sequence[tuple[Pins, Pins, Sequence[Change]]] = ()
    workarounds: Sequence[Found] = ()
    problems: Sequence[str] = ()


def attention(audit: Audit) -> bool:
    """Return whether anything hits that is not repaired, or that nobody has measured.

    Args:
        audit: What was asked for.
    """
    rows = [row for _, rows in audit.environments for row in rows]
    rows += [change.new for _, _, changes in audit.bumps for change in changes]
    return any(map(needs_attention, rows))


def as_text(audit: Audit, width: int = 100) -> str:
    """Return tables without colours: what hits, and the rest in a line.

    Args:
        audit: What was asked for.
        width: Columns to fold them to.
    """
    from nrl_patches.tables import text_of  # noqa: PLC0415 - the other formats do without rich

    return text_of(as_tables(audit, brief=False), width, color=False)


def as_tables(audit: Audit, *, everything: bool = False, brief: bool = True) -> Iterator[RenderableType]:
    """Yield the same for a terminal.

    Args:
        audit: What was asked for.
        everything: Whether what does not hit has rows too, rather than a line.
        brief: Whether that line counts them, rather than listing the ids.
    """
    from nrl_patches import tables  # noqa: PLC0415 - as above

    for pins, rows in audit.environments:
        yield tables.text(_title(pins, rows), "bold")
        shown = rows if everything else _shown(rows)
        lines = [tables.Line(str(r.hit), r.id, r.reason, title=r.title, short=str(r.repair)) for r in shown]
        yield tables.Ledger(lines, ("", "defect", "repair", "why"))
        folded = [row for row in rows if row not in shown]
        if brief and folded:
            absent = [name for row in folded if row.hit is Hit.ABSENT for name in missing_in(row.reason)]
            yield tables.fold((str(row.hit) for row in folded), absent)
        for line in (*(() if brief else _folded(folded)), *pins.remarks):
            yield tables.text(line, "dim")
        yield ""
    for old, new, changes in audit.bumps:
        lines = [
            tables.Line(
                str(change.effect),
                change.id,
                "\n".join(_moved(change)),
                short=f"{change.new.hit}, {change.new.repair}",
            )
            for change in (changes if everything else _changed(changes))
        ]
        yield tables.text(_bump_title(old, new, changes), "bold")
        yield tables.Ledger(lines, ("", "defect", "afterwards", "code that moved"), least=_PLACE)
    for found in audit.workarounds:
        yield tables.text(f"{found.file}:{found.line}: {found.kind}: {found.what}")
        yield tables.text(f"    {', '.join(found.ids)}{': ' * bool(found.ids)}{found.advice}")
    yield from map(tables.text, audit.problems)
    yield tables.text(audit.evidence, "dim")


def as_json(audit: Audit) -> str:
    """Return everything, by the published schema.

    Args:
        audit: What was asked for.
    """
    report: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "nrl_patches": __version__,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "evidence": audit.evidence,
        "attention": attention(audit),
        "environments": [_environment(pins) | {"defects": list(map(_row, rows))} for pins, rows in audit.environments],
        "bumps": [
            {"from": _environment(old), "to": _environment(new), "changes": [_change(change) for change in changes]}
            for old, new, changes in audit.bumps
        ],
        "workarounds": [dataclasses.asdict(found) for found in audit.workarounds],
        "problems": list(audit.problems),
    }
    return json.dumps(report, indent=2) + "\n"


def as_markdown(audit: Audit) -> str:
    """Return tables for a comment on a pull request.

    Args:
        audit: What was asked for.
    """
    lines: list[str] = []
    for pins, rows in audit.environments:
        lines += [f"**{_title(pins, rows)}**", ""]
        shown = _shown(rows)
        if shown:
            lines += ["| | defect | repair | why |", "|---|---|---|---|"]
            lines += [
                f"| {r.hit} | [`{r.id}`]({r.upstream})<br>{_escaped(r.title)} | {r.repair} | {_escaped(r.reason)} |"
                for r in shown
            ]
            lines.append("")
        lines += [*(f"{line}  " for line in (*_folded(rows), *pins.remarks)), ""]
    for old, new, changes in audit.bumps:
        lines += [f"**{_bump_title(old, new, changes)}**", ""]
        if _changed(changes):
            lines += ["| | defect | afterwards | code that moved |", "|---|---|---|---|"]
            for change in _changed(changes):
                moved = "<br>".join(f"{how}: `{place}`" for place, how in change.moved.items())
                lines.append(f"| {change.effect} | `{change.id}` | {change.new.hit}, {change.new.repair} | {moved} |")
            lines.append("")
    if audit.workarounds:
        lines += ["| place | workaround | advice |", "|---|---|---|"]
        lines += [
            f"| `{f.file}:{f.line}` | {f.kind}: `{_escaped(f.what)}` | {_escaped(f.advice)} |"
            for f in audit.workarounds
        ]
        lines.append("")
    return "\n".join([*lines, *audit.problems, audit.evidence, ""])


def as_github(audit: Audit) -> str:
    """Return one workflow annotation for each defect that needs attention, and for each workaround found.

    Args:
        audit: What was asked for.
    """
    lines = []
    for pins, rows in (
        *audit.environments,
        *((new, [change.new for change in changes]) for _, new, changes in audit.bumps),
    ):
        where = f" ({pins.label})" if pins.label else ""
        lines += [
            f"::{'error' if row.hit is Hit.YES else 'warning'} title={_parameter(f'{row.id}: {row.hit}{where}')}::"
            f"{_message(f'{row.title} {row.reason}. {row.advice}')}"
            for row in rows
            if needs_attention(row)
        ]
    lines += [
        f"::notice file={_parameter(f.file)},line={f.line},title={_parameter(f.kind)}::{_message(f.advice)}"
        for f in audit.workarounds
    ]
    return "\n".join([*lines, audit.evidence, ""])


FORMATS: Mapping[str, Callable[[Audit], str]] = {
    "text": as_text,
    "json": as_json,
    "markdown": as_markdown,
    "github": as_github,
}


def _title(pins: Pins, rows: Sequence[Row]) -> str:
    hits = [row for row in rows if row.hit is Hit.YES]
    repaired = sum(row.repair is Repair.YES for row in hits)
    unmeasured = sum(row.hit is Hit.UNMEASURED for row in rows)
    counts = [
        f"{len(hits)} defect{'s' * (len(hits) != 1)} hit" + (f", {repaired} repaired by nrl-patches" if hits else "")
    ]
    counts += [f"{unmeasured} unmeasured"] if unmeasured else []
    return f"{_called(pins, rows)}: {'; '.join(counts)}"


def _called(pins: Pins, rows: Sequence[Row]) -> str:
    judged = {name: version for row in rows for name, version in row.releases.items()}
    shown = (
        ", ".join(f"{name} {version}" for name, version in sorted(judged.items()))
        or "none of the distributions that we know"
    )
    return f"{pins.label} ({shown})" if pins.label else shown


def _bump_title(old: Pins, new: Pins, changes: Sequence[Change]) -> str:
    before, after = ([getattr(change, side) for change in changes] for side in ("old", "new"))
    return f"{_called(old, before)} → {_called(new, after)}"


def _shown(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.hit in {Hit.YES, Hit.UNMEASURED}]


def _changed(changes: Sequence[Change]) -> list[Change]:
    """What is worth a line: another answer, and code that moved where the defect hits."""
    return [c for c in changes if c.effect not in {Effect.NONE, Effect.STAYS} or (c.effect is Effect.STAYS and c.moved)]


def _moved(change: Change) -> Iterator[str]:
    for how in dict.fromkeys(change.moved.values()):
        yield f"{how}:"
        yield from (f"  {place}" for place, what in change.moved.items() if what == how)


def _folded(rows: Sequence[Row]) -> Iterator[str]:
    for hit in (Hit.NO, Hit.ABSENT):
        ids = [row.id for row in rows if row.hit is hit]
        if ids:
            yield f"{hit}: {', '.join(ids)}"


def _environment(pins: Pins) -> dict[str, Any]:
    return {"label": pins.label, "remarks": list(pins.remarks)}


def _row(row: Row) -> dict[str, Any]:
    return dataclasses.asdict(row) | {"hit": str(row.hit), "repair": str(row.repair)}


def _change(change: Change) -> dict[str, Any]:
    return {
        "id": change.id,
        "effect": str(change.effect),
        "old": _row(change.old),
        "new": _row(change.new),
        "moved": dict(change.moved),
    }


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _parameter(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
