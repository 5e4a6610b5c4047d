"""What a bump of pins changes: defects that begin or end, and upstream code that moved under a patch."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nrl_patches.audit.answers import Hit, Repair, Row, answer
from nrl_patches.audit.pins import Pins
from nrl_patches.defect import Defect
from nrl_patches.engine.decision import places_of
from nrl_patches.engine.upstream_code import ABSENT
from nrl_patches.matrix.evidence import Evidence

__all__ = ["Change", "Effect", "bump", "pairs_of"]


class Effect(str, enum.Enum):
    """What a bump does to one defect."""

    BEGINS = "begins"
    UNMEASURED = "unmeasured"
    STAYS = "stays"
    ENDS = "ends"
    NONE = "none"

    __str__ = str.__str__


@dataclass(frozen=True)
class Change:
    """What a bump changes for one defect.

    Attributes:
        id: The defect.
        effect: What becomes of it.
        old: The answer before.
        new: The answer afterwards.
        moved: Places that the patch touches or relies on whose code is another afterwards, and how.
    """

    id: str
    effect: Effect
    old: Row
    new: Row
    moved: Mapping[str, str] = field(default_factory=dict)


def bump(patches: Iterable[Defect], old: Pins, new: Pins, evidence: Evidence) -> list[Change]:
    """Compare two environments; what begins comes first.

    Args:
        patches: The patches.
        old: The environment before.
        new: The environment afterwards.
        evidence: All measurements.

    Returns:
        One change per patch, also where nothing changes.
    """
    every = list(patches)
    before, after = ({row.id: row for row in answer(every, pins, evidence)} for pins in (old, new))
    changes = [
        Change(p.id, _effect(before[p.id], after[p.id]), before[p.id], after[p.id], dict(_moved(p, old, new, evidence)))
        for p in every
    ]
    return sorted(changes, key=lambda change: (list(Effect).index(change.effect), change.id))


def pairs_of(old: Sequence[Pins], new: Sequence[Pins]) -> list[tuple[Pins, Pins]]:
    """Return which environments of two files belong together: those of one label, or the only ones.

    Args:
        old: Those of the file before.
        new: Those of the file afterwards.

    Raises:
        ValueError: Nothing belongs together.
    """
    if len(old) == len(new) == 1:
        return [(old[0], new[0])]
    labels = {pins.label: pins for pins in old}
    pairs = [(labels[pins.label], pins) for pins in new if pins.label in labels]
    if not pairs:
        raise ValueError(f"no combination of the two is called the same: {sorted(labels)}, {[p.label for p in new]}")
    return pairs


def _effect(old: Row, new: Row) -> Effect:
    if new.hit is Hit.UNMEASURED:
        return Effect.UNMEASURED
    if new.hit is Hit.YES:
        return Effect.STAYS if old.hit is Hit.YES else Effect.BEGINS
    return Effect.ENDS if old.hit is Hit.YES or old.repair is Repair.UNKNOWN else Effect.NONE


def _moved(patch: Defect, old: Pins, new: Pins, evidence: Evidence) -> Iterator[tuple[str, str]]:
    for name in patch.affected.distributions:
        before, after = old.find(name), new.find(name)
        if before is None or after is None or before.version is None or after.version is None:
            continue
        for place in places_of(patch, name):
            code = evidence.code.get(place, {})
            was, now = code.get(before.version.public), code.get(after.version.public)
            if was is not None and now is not None and was != now:
                yield place, "gone" if now == ABSENT else "new" if was == ABSENT else "changed"
