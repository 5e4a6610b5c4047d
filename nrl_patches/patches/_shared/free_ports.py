"""Free TCP ports, for probes of code that searches for them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress


@contextmanager
def no_low_ports() -> Iterator[None]:
    """Hold the ports 100 to 131, as where only root may open them; 0.25.0 to 0.28.0 try those first."""
    with ExitStack() as held:
        for port in range(100, 132):
            with suppress(OSError):
                held.enter_context(closing(socket.socket())).bind(("", port))
        yield


def in_a_row(count: int) -> int:
    """Return the first of some ports in a row that are free, and that other processes do not look at first.

    Args:
        count: How many.

    Raises:
        OSError: There are none between 20000 and 30000.
    """
    places = range(20000, 30000, count)
    for place in range(len(places)):
        # Two probes at a time must not search the same ports: what one holds changes what the other sees.
        first = places[(os.getpid() + place) % len(places)]
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(closing(socket.socket())).bind(("", port))
            except OSError:
                continue
            return first
    raise OSError(f"no {count} free ports in a row")
