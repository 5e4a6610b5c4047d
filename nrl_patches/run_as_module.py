"""Takes the current directory off the path where ``python -m nrl_patches`` has put it there.

``python -m`` looks for modules in the current directory first, and in a checkout of transformers that would be the
transformers that the command tells about. Imported before anything else of this package, hence without imports of its
own beyond what is built in. What Python itself imports to find us is out of reach: the installed ``nrl-patches``, and
``python -P -m nrl_patches`` from 3.11 on, look nowhere but where they should.
"""

import sys


def _is_about_us() -> bool:
    # While Python is looking for the module that it has been told to run, sys.argv begins with "-m".
    named = sys.orig_argv[-len(sys.argv) :][:1] if sys.argv[:1] == ["-m"] else []
    return any(name.rpartition("-m")[2].partition(".")[0] == "nrl_patches" for name in named)


if _is_about_us() and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
