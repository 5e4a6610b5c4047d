"""The entry point that all hosts share: imports nrl_patches into a process, and reports where that fails.

Imports only builtin modules until it is called, since interpreters execute it that never need it. Children of
``multiprocessing`` execute it as text: reporting that nrl_patches is missing must not need any of its modules.
"""

import sys

OFF = ("0", "false", "no", "off")
ON = ("1", "true", "yes", "on")
"""The values of a switch, in lower case."""

RECORD = "nrl_patches-1"
"""The name of the file in which a process records its patches; the number is the version of the format."""

failure = ""
"""The traceback of the import of nrl_patches, where that failed here; empty otherwise."""

EXPECTED = "nrl_patches ({path}): expected to be imported"
NEXT_STEP = "reinstall nrl-patches in this environment"
"""How a message begins and ends; both may name the path, the process (``pid``) and its interpreter (``python``)."""


def is_set_to(variable: str, words: tuple[str, ...]) -> bool:
    """Whether an environment variable has one of some values, in any case.

    Args:
        variable: Its name; unset counts as empty.
        words: The values, in lower case.
    """
    import os  # noqa: PLC0415 - see the module docstring

    return os.environ.get(variable, "").strip().lower() in words


def is_strict() -> bool:
    """Whether problems raise; read here, because nrl_patches may be the very thing that cannot be imported."""
    return is_set_to("NRL_PATCHES_STRICT", ON)


def load(path: str, expected: str = EXPECTED, next_step: str = NEXT_STEP) -> bool:
    """Import nrl_patches.

    Args:
        path: The word for what does so, see docs/processes.md; the first one in a process counts.
        expected: How the message begins where that fails.
        next_step: How it ends.

    Returns:
        Whether it is there: not where it is switched off, or could not be imported.

    Raises:
        Exception: What the import raises, under strict mode.
    """
    # Read here already: switched off, even a broken installation does nothing.
    if is_set_to("NRL_PATCHES", OFF):
        return False
    # The note is kept where two copies of nrl_patches meet.
    shared = sys.modules.setdefault("_nrl_patches_process", type(sys)("_nrl_patches_process"))
    vars(shared).setdefault("path", path)
    try:
        import nrl_patches  # noqa: F401, PLC0415
    except Exception as error:
        report(path, error, expected, next_step)
        if is_strict():
            _refuse(error)
            raise
        return False
    return True


def report(path: str, error: Exception, expected: str = EXPECTED, next_step: str = NEXT_STEP) -> None:
    """Log that this process runs without patches, and record it for ``status --pid``. Acts once.

    Args:
        path: As for :func:`load`.
        error: What was raised.
        expected: How the message begins.
        next_step: How it ends.
    """
    import logging  # noqa: PLC0415
    import os  # noqa: PLC0415
    from contextlib import suppress  # noqa: PLC0415

    if failure:
        return
    _keep(path, error)
    message = str(error)
    if all(kind.__module__ != "nrl_patches.errors" for kind in type(error).__mro__):  # Those say what to do.
        beginning, end = (t.format(path=path, pid=os.getpid(), python=sys.executable) for t in (expected, next_step))
        message = f"{beginning}; found {type(error).__name__}: {message}; next step: {end}"
    consequence = "" if is_strict() else "; this process runs without any patch"
    logger = logging.getLogger("nrl_patches")
    logger.error("%s%s", message, consequence)
    # As nrl_patches.engine.log does, which may be the very thing that cannot be imported.
    if not logger.isEnabledFor(logging.ERROR) and sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(f"nrl_patches: {message}{consequence}", file=sys.stderr, flush=True)  # noqa: T201


def write_record(text: str) -> int:
    """Write a record into a new file in memory, which the process keeps open.

    Args:
        text: The record, as JSON.

    Returns:
        The file descriptor, 3 or above; a program that the process executes does not inherit it.

    Raises:
        OSError: A sandbox forbids such files.
        AttributeError: This system has none (``os.memfd_create``).
        ImportError: This system has no ``fcntl``.
    """
    import os  # noqa: PLC0415
    from fcntl import F_DUPFD_CLOEXEC, fcntl  # noqa: PLC0415

    made = os.memfd_create(RECORD, os.MFD_CLOEXEC)
    try:  # 0 to 2 are for others, even where they are closed now.
        kept = fcntl(made, F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(made)
    os.write(kept, text.encode())
    return kept


def _refuse(error: Exception) -> None:
    # wrapt forgets its hooks once it has called them, and vLLM its plugins: a host that catches the error and imports
    # again would run unpatched.
    from contextlib import suppress  # noqa: PLC0415
    from importlib.metadata import distributions  # noqa: PLC0415

    packages = set()
    for distribution in distributions():
        with suppress(Exception):  # The metadata of other distributions may be broken.
            packages |= {entry.name for entry in distribution.entry_points if entry.group == "nrl_patches.startup"}

    class Refusal:
        @staticmethod
        def find_spec(name: str, _path: object = None, _target: object = None) -> None:
            if name.partition(".")[0] in packages:
                raise error

    sys.meta_path.insert(0, Refusal)


def _keep(path: str, error: Exception) -> None:
    import json  # noqa: PLC0415
    import os  # noqa: PLC0415
    import traceback  # noqa: PLC0415
    from contextlib import suppress  # noqa: PLC0415

    global failure  # noqa: PLW0603 - for the process itself; others read the record
    failure = "".join(traceback.format_exception(error))
    record = {"change": 1, "pid": os.getpid(), "activated_by": path, "failure": failure, "statuses": [], "complete": 1}
    with suppress(OSError, AttributeError, ImportError):  # Where there are no files in memory, the log has to do.
        write_record(json.dumps(record))
