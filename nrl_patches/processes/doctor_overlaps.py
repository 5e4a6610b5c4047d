"""Which patches of different parties have the same target here, in which order they are applied, and which can go."""

from __future__ import annotations

from collections.abc import Iterator

from nrl_patches.bootstrap import activation
from nrl_patches.declaration import Patch
from nrl_patches.engine.affected import Answer
from nrl_patches.engine.decision import decide
from nrl_patches.processes.doctor import Finding

__all__ = ["check_overlaps"]


def check_overlaps() -> list[Finding]:
    """Return the pairs of patches that both apply to a target here, where not both are this package's own."""
    settings = activation().settings
    due = [
        patch
        for patch in activation().registry
        if patch.id not in settings.disabled
        and (patch.id in settings.forced or decide(patch).answer in {Answer.YES, Answer.UNDECIDED})
    ]
    return [
        finding
        for place, later in enumerate(due)
        for first in due[:place]
        if _owner(first) != _owner(later)
        for finding in _overlap(first, later)
    ]


def _overlap(first: Patch, later: Patch) -> Iterator[Finding]:
    shared = [fix.target for fix in first.fixes if fix.target in {other.target for other in later.fixes}]
    if not shared:
        return
    found = f"that {first.id} patches {', '.join(shared)} too, and is applied first"
    links = [link for link in first.upstream if link in later.upstream]
    step = "check that they go together"
    if links:
        found = f"{found}, for the same defect ({links[0]}): one of the two is superfluous"
        step = f"{later.opt_out}=1 keeps {first.id} only"
    yield Finding(later.id, found, step, unpatched=False)


def _owner(patch: Patch) -> str:
    return patch.id.partition("/")[0] if "/" in patch.id else ""
