"""Save the cost of waiting in processes under ``nrl-patches run`` that never import a target.

With ``AUTOWRAPT_BOOTSTRAP`` set, autowrapt imports wrapt and reads the metadata of everything installed at the start of
every interpreter: several times what a bare interpreter takes. ``nrl-patches run`` puts this folder first on
``PYTHONPATH``; here that registration is delayed until one of the packages that it concerns is imported. Where this
file is not executed (``python -I``), autowrapt does its work at once, and only the time is lost.

Another interpreter among the children of a job may lack autowrapt, or the package. This file is executed there too,
and says so when a target is imported.

Executed by any Python that a job starts, from 3.6 on, before everything else: it needs next to nothing, and
leaves no trace on the path.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "nrl_patches.startup"
PACKAGES = ("huggingface_hub", "nemo_automodel", "peft", "torch", "transformers", "vllm")
"""Those of that entry point group; a test compares the two."""


class _Finder:
    """Registers at the first search for one of the packages, and then restarts that search."""

    def __init__(self, register: "Callable[[], None]") -> None:
        self.register = register
        self.problem = None  # type: Exception | None

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> object:
        if name not in PACKAGES or self not in sys.meta_path:  # type: ignore[comparison-overlap]
            return None
        try:
            sys.meta_path.remove(self)  # type: ignore[arg-type]
        except ValueError:  # Another thread was faster.
            return None
        if self.problem is None:
            try:
                _check_autowrapt()
                self.register()
                _check_entry_points()
            except Exception as error:  # noqa: BLE001 - the host's import must continue
                self.problem = error
        # The finder that has just been registered stands first; the search under way has passed that place.
        from importlib.util import find_spec  # noqa: PLC0415

        spec = find_spec(name)
        if self.problem is None or "nrl_patches" in sys.modules:  # Another path may have brought it.
            return spec
        from os import environ  # noqa: PLC0415

        strict = environ.get("NRL_PATCHES_STRICT", "").strip().lower() in ("1", "true", "yes", "on")
        if strict or spec is None:  # Many search for optional packages, and try again after an error.
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]
        if spec is not None:
            _report(self.problem, strict)
        return spec


class _LackingError(Exception):
    """Says what this interpreter lacks for startup files of ours to work."""


def _check_autowrapt() -> None:
    if "autowrapt.bootstrap" in sys.modules:
        return
    from importlib.util import find_spec  # noqa: PLC0415

    if find_spec("autowrapt") is None:
        raise _LackingError("no autowrapt")
    raise _LackingError("autowrapt, but its startup file is not executed: it is not installed in site-packages")


def _check_entry_points() -> None:
    from importlib.metadata import entry_points  # noqa: PLC0415

    if not entry_points(group=GROUP):
        raise _LackingError("autowrapt, but no entry points of nrl-patches")


def _report(problem: Exception, strict: bool) -> None:  # noqa: FBT001 - private
    found = str(problem) if isinstance(problem, _LackingError) else f"{type(problem).__name__}: {problem}"
    # -I, because to pip what is found on PYTHONPATH is installed already.
    message = (
        f"nrl_patches (startup): {sys.executable}: expected autowrapt to register its hooks; found {found}; "
        f'next step: {sys.executable} -I -m pip install "nrl-patches[run]"'
    )
    if strict:  # Not an ImportError, which hosts may take for a missing optional package.
        raise RuntimeError(message) from problem
    from contextlib import suppress  # noqa: PLC0415

    with suppress(Exception):  # There may be no stderr, or a closed one.
        sys.stderr.write(f"{message}; this process may run without any patch\n")


def _do_nothing() -> None:
    pass


def _put_off() -> None:
    from os import environ  # noqa: PLC0415

    asked = environ.get("AUTOWRAPT_BOOTSTRAP", "")
    if GROUP not in [group.strip() for group in asked.split(",")]:
        return
    autowrapt = sys.modules.get("autowrapt.bootstrap")
    register = getattr(autowrapt, "register_bootstrap_functions", None)
    if register is None or asked != GROUP:  # Other groups are left to autowrapt.
        register = _do_nothing
    else:
        autowrapt.register_bootstrap_functions = _do_nothing  # type: ignore[union-attr]
    if environ.get("NRL_PATCHES", "").strip().lower() not in ("0", "false", "no", "off"):
        sys.meta_path.insert(0, _Finder(register))  # type: ignore[arg-type]


_put_off()

# The user's own module of this name comes next; without one, the interpreter expects the ImportError.
sys.path.remove(__file__.rpartition("/")[0])
del sys.modules[__name__]
import sitecustomize  # type: ignore[import-not-found]  # noqa: E402, F401
