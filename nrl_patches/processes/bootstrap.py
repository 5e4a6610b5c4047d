"""The first lines of every interpreter that this package starts.

``launch.py`` hands them over as text, with ``-c``, because a module would have to be imported first. They run on any
Python from 3.6 on, the present one or one that a user has named. Arguments: the file descriptor of a pipe, the folder
of this package or nothing, the code to execute, its arguments.
"""

import sys

# The current directory, before anything can be imported from it; Python 3.11 and later respect PYTHONSAFEPATH.
if not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [""]:
    del sys.path[0]

import os

if os.environ.get("PYTHONSAFEPATH") == "nrl_patches":  # For this interpreter, not for those that it starts.
    del os.environ["PYTHONSAFEPATH"]


class _Home:
    """Finds our package, and nothing else, where the starter has it: that folder may be the current directory."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> object:
        if name != "nrl_patches":
            return None
        from importlib.machinery import PathFinder  # noqa: PLC0415 - most never get here

        return PathFinder.find_spec(name, [self.folder])


_pipe, _folder, _code = sys.argv[1:4]
sys.argv[:] = ["nrl-patches", *sys.argv[4:]]
end_with_the_starter(int(_pipe))  # type: ignore[name-defined]  # noqa: F821 - lifeline.py comes before this file
if _folder:
    sys.meta_path.insert(0, _Home(_folder))  # type: ignore[arg-type]
exec(_code)  # noqa: S102 - what this is for
