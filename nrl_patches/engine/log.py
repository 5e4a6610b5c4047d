"""Log messages, and print warnings to stderr where the logging configuration would drop them."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from nrl_patches.errors import Problem

__all__ = ["tell"]

logger = logging.getLogger("nrl_patches")


def tell(level: int, message: Problem | str) -> None:
    """Log a message; print a warning to stderr if no handler would emit it. Never raises.

    ``logging.config.dictConfig`` disables every logger that it does not name, including this one, unless
    ``disable_existing_loggers`` is false; a host may raise the level of the root logger, or have no handler but a
    ``NullHandler``.

    Callers must not hold a lock: handlers have their own.

    Args:
        level: A level of :mod:`logging`.
        message: The message.
    """
    logger.log(level, "%s", message)
    if level >= logging.WARNING and not _is_heard(level) and sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(f"nrl_patches: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the last resort


def _is_heard(level: int) -> bool:
    if not logger.isEnabledFor(level):
        # A level set on this very logger is a decision about this package; anything else was meant for other loggers.
        return not logger.disabled and logger.manager.disable < level < logger.level
    handlers: list[logging.Handler] = []
    there: logging.Logger | None = logger
    while there is not None:
        handlers += there.handlers
        there = there.parent if there.propagate else None
    if not handlers and logging.lastResort is not None:
        handlers.append(logging.lastResort)
    return any(level >= handler.level and not isinstance(handler, logging.NullHandler) for handler in handlers)
