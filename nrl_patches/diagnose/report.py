"""What was found as JSON by the published schema, and as Markdown for a pull request."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nrl_patches import __version__
from nrl_patches.diagnose.agreement import Agreement
from nrl_patches.diagnose.judge import COMPARED, FAULT, NOT_RUN, OK, Finding
from nrl_patches.diagnose.processes import settings_text
from nrl_patches.diagnose.run import Outcome, exit_code

__all__ = ["SCHEMA_VERSION", "as_json", "as_markdown", "headline"]

_TRAINERS = {"transformers": "HF", "nemo-automodel": "nemo-automodel"}
_WORST = 5
_LARGE = 100.0

SCHEMA_VERSION = 1
"""Of the JSON report; raised when a field changes its meaning or goes. See schemas/diagnose-1.json."""


def headline(outcome: Outcome) -> str:
    """Return the one line for people in a hurry.

    Args:
        outcome: What was found.
    """
    verdicts = outcome.verdicts()
    parts = [f"{verdicts.count(word)} {word}" for word in (OK, FAULT, NOT_RUN, COMPARED) if word in verdicts]
    word = {0: "PASSED", 1: "FAILED"}.get(exit_code(outcome), "INCOMPLETE")
    return f"{word}: {outcome.settings.model} ({', '.join(parts) or 'nothing was run'})"


def as_json(outcome: Outcome) -> str:
    """Return everything, by the published schema.

    Args:
        outcome: What was found.

    Returns:
        One JSON object by ``schemas/diagnose-1.json``, with a line feed at its end; NaN is null there.
    """
    report = {
        "schema": SCHEMA_VERSION,
        "nrl_patches": __version__,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "passed": exit_code(outcome) == 0,
        "settings": settings_text(outcome.settings),
        "sides": outcome.sides,
        "agreement": [vars(row) | {"row": row.row._asdict()} for row in outcome.rows],
        "findings": [vars(found) for found in outcome.findings],
    }
    return json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"


def as_markdown(outcome: Outcome) -> str:
    """Return the tables that a pull request shows.

    Args:
        outcome: What was found.

    Returns:
        GitHub's Markdown.
    """
    lines = [f"**{headline(outcome)}**", ""]
    for side, found in outcome.sides.items():
        known = {name: value for name, value in found.items() if not name.startswith("has ")}
        lines.append(f"- {side}: {', '.join(f'{name} {value}' for name, value in known.items())}")
    lines += ["", *_table(outcome), *_worst(outcome.rows), *_others(outcome.findings)]
    return "\n".join(lines) + "\n"


def _table(outcome: Outcome) -> Iterator[str]:
    if not outcome.rows:
        return
    columns = list(dict.fromkeys((row.trainer, row.state) for row in outcome.rows))
    states = list(dict.fromkeys(row.state for row in outcome.rows))
    yield f"`token_mult_prob_error`, the mean of {outcome.settings.repeats} runs. 1.0 is perfect, above"
    yield f"{outcome.settings.threshold:g} needs a look. Spread: the largest less the smallest of the runs."
    yield ""
    head = ["Sequence Length", "Data Type", "Generation Method", "Batch Size"]
    head += [f"{_TRAINERS[trainer]} vs vLLM, {state}" for trainer, state in columns]
    for name in ("sampled from the trainer", "spread", "KL k1 / k2 / k3"):
        head += [f"{name}, {state}" for state in states]
    head += ["verdict"]
    yield _line(head)
    yield "|" + "---|" * len(head)
    for key in dict.fromkeys(row.row for row in outcome.rows):
        found = {(row.trainer, row.state): row for row in outcome.rows if row.row == key}
        first = [next(row for row in found.values() if row.state == state) for state in states]
        method = key.method.capitalize() + (f" ({key.label})" if key.label else "")
        cells = [f"{key.length:,}", key.data.capitalize(), method, str(key.batch)]
        cells += [_error(found[column].error) for column in columns]
        cells += [_error(row.other) for row in first]
        cells += [_figure(row.spread) + _repeated(row) for row in first]
        cells += [_divergence(row) for row in first]
        yield _line([*cells, ", ".join(f"{row.state} {row.verdict}" for row in found.values())])
    yield ""
    failed = {
        row.reason: f"{row.row.length:,} {row.row.data}, {row.state}" for row in outcome.rows if row.verdict != OK
    }
    yield from (f"- {place}: {reason}" for reason, place in failed.items())
    yield ""


def _worst(rows: Sequence[Agreement]) -> Iterator[str]:
    for state in dict.fromkeys(row.state for row in rows):
        far = {(token["after"], token["id"]): (row, token) for row in rows if row.state == state for token in row.worst}
        if not far:
            continue
        yield f"The tokens that both sides are furthest apart in, patches {state}:"
        yield ""
        yield _line(["row", "position", "after", "token", "log p, engine", "log p, trainer"])
        yield "|" + "---|" * 6
        for row, token in sorted(far.values(), key=lambda pair: -_gap(pair[1]))[:_WORST]:
            name = f"{row.row.length} {row.row.data} {row.row.method} x {row.row.batch}, {row.trainer}"
            shown = [f"`{_code(token[part])}`" for part in ("after", "text")]
            yield _line([name, str(token["position"]), *shown, _figure(token["engine"]), _figure(token["trainer"])])
        yield ""


def _others(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield _line(["diagnostic", "case", "patches", "verdict", "found"])
    yield "|" + "---|" * 5
    for found in findings:
        yield _line([found.diagnostic, found.case, found.state, found.verdict, found.reason])
    yield ""
    applied = sorted({name for found in findings for name in found.applied})
    if applied:
        yield f"Applied where the patches are on: {', '.join(f'`{name}`' for name in applied)}."


def _gap(token: Mapping[str, Any]) -> float:
    gap = abs(float(token["engine"]) - float(token["trainer"]))
    return math.inf if math.isnan(gap) else gap


def _error(value: float | None) -> str:
    return f"{value:.4f}" if value is not None and value < _LARGE else _figure(value)


def _divergence(row: Agreement) -> str:
    found = row.distance
    return " / ".join(f"{found[name]:.2g}" for name in ("k1", "k2", "k3")) if found else ""


def _repeated(row: Agreement) -> str:
    return "" if row.same_tokens is not False else " (other tokens)"


def _figure(value: float | None) -> str:
    return "" if value is None else "NaN" if math.isnan(value) else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _code(text: object) -> str:
    return str(text).replace("`", "'").replace("\n", "⏎") or " "


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(name): _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content
