"""Reads TOML, by the standard library where it can."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["read_toml"]


def read_toml(file: Path) -> dict[str, Any]:
    """Return the content of a file.

    Args:
        file: The file.

    Raises:
        ValueError: It is no TOML.
        OSError: It cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - not in 3.10
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    with file.open("rb") as handle:
        content: dict[str, Any] = tomllib.load(handle)
    return content
