#!/usr/bin/env python3
"""Check that a tag, the version of the package and the newest heading of CHANGELOG.md name the same release.

Usage: check_version.py TAG, where TAG begins with v. Exits with 1 and says what differs.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def differences(tag: str, package: str, changelog: str) -> list[str]:
    """Return what stands in the way of a release, one sentence each.

    Args:
        tag: The tag.
        package: The text of ``nrl_patches/__init__.py``.
        changelog: The text of ``CHANGELOG.md``.
    """
    version = re.findall(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE)
    (first, unreleased), (newest, _) = (*sections, ("", ""), ("", ""))[:2]
    released = re.fullmatch(r"\[(.+)\] - \d{4}-\d{2}-\d{2}", newest)
    found = []
    if [tag] != [f"v{number}" for number in version]:
        found.append(f"the tag is {tag}, __version__ in nrl_patches/__init__.py is {', '.join(version)}")
    if first != "[Unreleased]" or unreleased.strip():
        found.append("CHANGELOG.md does not begin with an empty section [Unreleased]")
    if released is None or f"v{released[1]}" != tag:
        found.append(f"the tag is {tag}, the newest heading of CHANGELOG.md is {newest or 'missing'}")
    return found


if __name__ == "__main__":
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("nrl_patches/__init__.py", "CHANGELOG.md")]
    sys.exit("\n".join(differences(sys.argv[1], *texts)))
