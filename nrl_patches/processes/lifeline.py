"""A process group that the kernel kills when its starter ends, however that ends.

Given as text to interpreters that cannot import it, see ``bootstrap.py``: hence no imports at the top.
"""


def end_with_the_starter(pipe: int) -> None:
    """Let the kernel kill the process group that this process leads when the other end of a pipe is closed.

    Does nothing in a process that leads none, or where the system cannot do that: then only a starter that comes to an
    orderly end kills it.

    Args:
        pipe: The reading end; nobody but the starter may hold the writing one.
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
    except (ImportError, AttributeError, OSError):  # The last one says that the pipe is open still.
        return
    os.killpg(0, 9)  # The starter has ended already.
