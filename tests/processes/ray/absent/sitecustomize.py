"""Makes this the environment of a worker that nobody has installed nrl_patches in."""

import sys
from importlib.machinery import PathFinder


class Absent:
    @staticmethod
    def find_spec(name, _path=None, _target=None):
        sent_along = PathFinder.find_spec(name, [folder for folder in sys.path if "py_modules" in folder])
        if name in {"nrl_patches", "nrl_patches_hosts"} and sent_along is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return sent_along


sys.meta_path.insert(0, Absent)
