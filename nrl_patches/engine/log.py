"""Telling the user: through logging, and past it where the logging set-up would lose a warning."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from nrl_patches.errors import Problem

__all__ = ["tell"]

logger = logging.getLogger("nrl_patches")


def tell(level: int, message: Problem | str) -> None:
    """Log a message; a warning that nobody would get that way goes to stderr. Never raises.

    ``logging.config.dictConfig`` disables every logger that it does not name, ours among them, unless it is asked not
    to; a host may raise the level of the root logger, or have no handler but a ``NullHandler``.

    Callers hold no lock meanwhile: handlers have locks of their own.

    Args:
        level: One of logging's.
        message: What the user should read.
    """
    logger.log(level, "%s", message)
    if level >= logging.WARNING and not _is_heard(level) and sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(f"nrl_patches: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the last resort


def _is_heard(level: int) -> bool:
    if not logger.isEnabledFor(level):
        # A level of this very logger is somebody's decision about us; everything else was meant for others.
        return not logger.disabled and logger.manager.disable < level < logger.level
    handlers: list[logging.Handler] = []
    there: logging.Logger | None = logger
    while there is not None:
        handlers += there.handlers
        there = there.parent if there.propagate else None
    if not handlers and logging.lastResort is not None:
        handlers.append(logging.lastResort)
    return any(level >= handler.level and not isinstance(handler, logging.NullHandler) for handler in handlers)
