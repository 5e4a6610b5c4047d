"""What a call tells its user: the exception, or else what it warns of, logs and returns; without the patches and with.

A patch that makes a loud defect silent is a defect of its own, so what saves the user without it must still do so.
"""

import contextlib
import logging
import re
import sys
import warnings

import nrl_patches

LOGGERS = ("", "transformers", "vllm", "nrl_patches")
"""Those that do not hand on what they get, and the root."""


def by_side(cases):
    """Return for each side, ``off`` and ``on``, what each case tells.

    Args:
        cases: A function that yields the name of each case and the call; it is called anew for each side.
    """
    found = {"on": {name: told(call) for name, call in cases()}}
    found["status"] = {name: status.state for name, status in nrl_patches.status().items()}
    found["off"] = found["on"]
    if "applied" in found["status"].values():
        with nrl_patches.undo():
            found["off"] = {name: told(call) for name, call in cases()}
    return found


def told(call):
    """Return what a call tells, as text without what differs from one call to the next."""
    forget_what_was_said_once()
    with heard() as said:
        try:
            result = {"returns": call()}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - what torch raises of a checkpoint is no Exception
            result = {"raises": constant(f"{type(error).__name__}: {error}")}
    return result | {"says": sorted({constant(text) for text in said})}


def constant(text):
    return re.sub(r"0x[0-9a-f]{6,}|/tmp/[\w./-]*|\x1b\[[0-9;]*m", "…", text)[:2000]


@contextlib.contextmanager
def heard():
    """Collect warnings, and what is logged as one or as worse."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def forget_what_was_said_once():
    """Let transformers say again what it says once a process."""
    logging_of_transformers = sys.modules.get("transformers.utils.logging")
    for name in ("warning_once", "info_once"):
        once = getattr(logging_of_transformers, name, None)
        if once is not None:
            once.cache_clear()
