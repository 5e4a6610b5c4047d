"""`standin.core.count` counts one too few.

Problem: it returns one too few.
Hit by: whoever calls it.
Fix: add one.
Remove when: it counts right.
"""

from nrl_patches import Observation, Patch, mismatch

patch = Patch(
    __name__,
    affected="standin<2",
    upstream=("https://example.org/issues/1",),
    opt_out="ACME_PATCHES_DISABLE_OFF_BY_ONE",
)


@patch.fix("standin.core:count", guard=mismatch)
def add_one(count):
    """Build a count that adds what is missing."""

    def count_all():
        return count() + 1

    return count_all


@patch.probe
def counts_one_too_few():
    """Count."""
    from standin.core import count

    return Observation(count() != 2, {"count": count()})
