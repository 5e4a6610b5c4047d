"""Let the kernel kill a process group when the process that started it ends, in whatever way.

Given as text to interpreters that cannot import it, see ``bootstrap.py``: hence no imports at the top.
"""


def end_with_the_starter(pipe: int) -> None:
    """Let the kernel kill the process group that this process leads when the other end of a pipe is closed.

    Does nothing in a process that does not lead its group, or where the system lacks the means: then the group is
    killed only if the starter exits in an orderly way.

    Args:
        pipe: The reading end; only the starter may have the writing end open.
    """
    import os  # noqa: PLC0415 - see above

    if os.getpgrp() != os.getpid():
        return
    try:
        import fcntl  # noqa: PLC0415 - not everywhere

        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, 9)
        fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.read(pipe, 1)
    except (ImportError, AttributeError, OSError):  # BlockingIOError, an OSError: the pipe is still open.
        return
    os.killpg(0, 9)  # The starter has ended already.
