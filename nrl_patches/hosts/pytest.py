"""pytest: entry point group ``pytest11``.

pytest imports it in every session of an environment that has this package; it does nothing until ``--nrl-tripwires`` is
given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_addoption", "pytest_configure"]

_LONGEST = 7 * 24 * 3600


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--nrl-tripwires`` and its timeout.

    Args:
        parser: pytest's parser of the command line and the ini file.
    """
    group = parser.getgroup("nrl-patches")
    group.addoption(
        "--nrl-tripwires", action="store_true", help="collect one test per patch of nrl-patches: is it still needed?"
    )
    group.addoption(
        "--nrl-tripwires-timeout", type=_seconds, default=60.0, metavar="SECONDS", help="for each side of a tripwire"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin itself if ``--nrl-tripwires`` is given.

    Args:
        config: The configuration of the session.
    """
    if config.getoption("--nrl-tripwires"):
        from nrl_patches.tripwires.pytest_plugin import TripwirePlugin  # noqa: PLC0415 - see the module docstring

        config.pluginmanager.register(TripwirePlugin(), "nrl-tripwires-plugin")


def _seconds(text: str) -> float:
    # As the command reads it; that cannot be imported here.
    import argparse  # noqa: PLC0415 - pytest has done so already
    from contextlib import suppress  # noqa: PLC0415

    with suppress(ValueError):
        if 0 < (seconds := float(text)) <= _LONGEST:
            return seconds
    raise argparse.ArgumentTypeError(f"expected seconds above 0, {_LONGEST} (a week) at most; found {text[:60]!r}")
