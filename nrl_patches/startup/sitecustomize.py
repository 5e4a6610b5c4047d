"""Spares processes under ``nrl-patches run`` that never import a target the cost of waiting for one.

With ``AUTOWRAPT_BOOTSTRAP`` set, autowrapt imports wrapt and reads the metadata of everything installed at the start of
every interpreter: several times what a bare interpreter takes. ``nrl-patches run`` puts this folder first on
``PYTHONPATH``; here that registration is put off until one of the packages that it is about is looked for. Where this
file is not executed (``python -I``), autowrapt does its work at once, and only the time is lost.

Executed by any Python that a job starts, from 3.6 on, before everything else: it needs next to nothing, and
leaves no trace on the path.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = ("nemo_automodel", "transformers", "vllm")
"""Those of the entry point group ``nrl_patches.startup``; a test holds the two against each other."""


class _Finder:
    """Registers at the first search for one of the packages, and then begins that search anew."""

    def __init__(self, register: "Callable[[], None]") -> None:
        self.register = register

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> object:
        if name not in PACKAGES or self not in sys.meta_path:  # type: ignore[comparison-overlap]
            return None
        try:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
        except ValueError:  # Another thread was faster.
            return None
        try:
            self.register()
        except Exception as error:
            from os import environ  # noqa: PLC0415

            if environ.get("NRL_PATCHES_STRICT", "").strip().lower() in ("1", "true", "yes", "on"):
                raise
            from contextlib import suppress  # noqa: PLC0415

            with suppress(Exception):  # There may be no stderr, or a closed one.
                sys.stderr.write(
                    "nrl_patches (startup): expected autowrapt to register its hooks; "
                    f"found {type(error).__name__}: {error}; next step: reinstall nrl-patches[run] in this "
                    "environment; this process may run without any patch\n"
                )
        # The finder that has just been registered stands first; the search under way has passed that place.
        from importlib.util import find_spec  # noqa: PLC0415

        return find_spec(name)


def _put_off() -> None:
    from os import environ  # noqa: PLC0415

    autowrapt = sys.modules.get("autowrapt.bootstrap")
    register = getattr(autowrapt, "register_bootstrap_functions", None)
    # Other groups than ours are none of our business.
    if autowrapt and register and environ.get("AUTOWRAPT_BOOTSTRAP") == "nrl_patches.startup":
        autowrapt.register_bootstrap_functions = lambda: None  # type: ignore[attr-defined]
        if environ.get("NRL_PATCHES", "").strip().lower() not in ("0", "false", "no", "off"):
            sys.meta_path.insert(0, _Finder(register))  # type: ignore[arg-type]


_put_off()

# The user's own module of this name comes next; that there is none is what the interpreter expects to hear.
sys.path.remove(__file__.rpartition("/")[0])
del sys.modules[__name__]
import sitecustomize  # type: ignore[import-not-found]  # noqa: E402, F401
