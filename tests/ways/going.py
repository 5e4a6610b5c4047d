"""Going the ways of a subject, and telling what became of each."""

import contextlib
import importlib
import logging
import time
import warnings


def go(subject, options, names=None):
    """Return what became of the ways of a subject, by name.

    Each outcome has ``far``, how far from right the result was, or ``error``, what was raised; and ``said``, what the
    user was told on the way.

    Args:
        subject: The subject.
        options: Which ways there are, in the words of its module.
        names: Those that are gone, None for all.
    """
    ways = importlib.import_module(f"ways.{subject.module}").ways(*subject.arguments, **options)
    return {name: outcome(way) for name, way in ways if names is None or name in names}


def outcome(way):
    start = time.process_time()
    with heard() as said:
        try:
            result = {"far": float(way())}
        except Exception as error:  # noqa: BLE001 - whatever a release raises
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
    return result | {"said": said, "seconds": round(time.process_time() - start, 2)}


@contextlib.contextmanager
def heard():
    """Collect the warnings of this package, by whichever way they are given."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("nrl_patches")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught if "nrl_patches" in str(warning.message)]
    finally:
        logger.removeHandler(handler)
