"""What ``import nrl_patches`` does immediately: it imports a few modules, and waits until the engine is needed.

The engine, wrapt and packaging are loaded when a package with a target is searched for, when ``multiprocessing`` spawns
a child, and when a status is requested. They are loaded immediately if such a package is already loaded, or if one of
this package's variables is set: an invalid value is then reported at the import, and raised there under strict mode.

Imports nothing beyond what an interpreter has loaded at its start, ``__future__`` included: each module takes half a
millisecond.
"""

import os
import sys
from _thread import RLock, get_ident

from nrl_patches import contributed, meta_path
from nrl_patches.hosts import door

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from nrl_patches.engine.activation import Activation

__all__ = ["activation", "cover", "enter", "finder", "packages"]

SPAWN = "multiprocessing.spawn"
_MARK = "_nrl_patches_original"
_VARIABLES = ("NRL_PATCHES", "NRL_DISABLE_")
_RECORD = '{{"change":1,"pid":{},"version":"{}",{}"activated_by":"{}","waits":"{}","statuses":[],"complete":1}}'


class _State:
    """The state of this module: waiting, until the engine is loaded."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.version = ""
        self.packages: frozenset[str] = frozenset()
        self.activation: Activation | None = None
        self.waiting = False
        self.files: tuple[int, int] | None = None
        self.record = -1
        self.identity: tuple[int, ...] = ()
        self.observing: set[int] = set()


_state = _State()


def enter(version: str) -> str:
    """Wait for the engine to be needed, or load it. Acts once.

    Args:
        version: That of this package.

    Returns:
        The word for what brought this package into the process first.

    Raises:
        PatchError: Under strict mode, whatever is wrong.
    """
    _leave_current_directory()
    shared = sys.modules.setdefault("_nrl_patches_process", type(sys)("_nrl_patches_process"))
    path: str = vars(shared).setdefault("path", "import")
    if _state.waiting or _state.activation is not None:  # The package is reloaded.
        return path
    _state.version, _state.packages, _state.files = version, packages(), _files()
    asked = any(name.startswith(_VARIABLES) for name in os.environ)
    if asked or not _state.packages or not _state.packages.isdisjoint(sys.modules):
        activation()
        return path
    _state.waiting = True
    meta_path.put_first(finder)
    if SPAWN in sys.modules:
        cover(sys.modules[SPAWN])
    _write_record()
    os.register_at_fork(after_in_child=_after_fork)
    return path


def activation() -> "Activation":
    """Return the activation of this process, started. Loads the engine where that has not happened yet.

    Raises:
        PatchError: Under strict mode, whatever is wrong.
    """
    found = _state.activation
    if found is None:
        with _state.lock:
            found = _state.activation or _open()
    return found


def packages() -> frozenset[str]:
    """Return the top-level packages that have targets; empty if they cannot be listed.

    They are the folders of ``patches``, and what other distributions name that contribute patches.
    """
    try:
        names = os.listdir(f"{__file__.rpartition(os.sep)[0]}{os.sep}patches")  # noqa: PTH208 - pathlib takes 4 ms
    except OSError:  # In an archive.
        return frozenset()
    own = {name for name in names if "." not in name and not name.startswith("_")}
    return frozenset(own.union(contribution.target for contribution in contributed.contributions()))


def cover(spawn: "ModuleType") -> None:
    """Let every child that ``multiprocessing`` spawns from now on begin with ``import nrl_patches``. Acts once.

    Args:
        spawn: The module ``multiprocessing.spawn``.

    Raises:
        FailedError: Under strict mode, that it is not as it was in all versions of Python up to now.
    """
    original: Callable[[str], dict[str, Any]] | None = getattr(spawn, "get_preparation_data", None)
    if original is None and _state.activation is None:
        activation()  # It comes here again.
    elif original is None:
        from nrl_patches.processes.spawn import report_unreachable  # noqa: PLC0415 - see the module docstring

        report_unreachable()
    elif not hasattr(original, _MARK):

        def get_preparation_data(name: str) -> "dict[str, Any]":
            data = original(name)
            if _is_open():
                from nrl_patches.processes.spawn import pack  # noqa: PLC0415

                pack(data)
            return data

        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(get_preparation_data, name, getattr(original, name, None))
        vars(get_preparation_data).update({"__wrapped__": original, _MARK: original})
        spawn.get_preparation_data = get_preparation_data  # type: ignore[attr-defined]


class _Finder:
    """Loads the engine at the first search for a package that has a target."""

    def find_spec(self, name: str, path: "Any" = None, target: "ModuleType | None" = None) -> "Any":
        """Return what the engine's own finder finds; None for modules that do not concern it."""
        if name == SPAWN:
            return _observed(name, path, target)
        if name.partition(".")[0] not in _state.packages or not _is_open():
            return None
        from nrl_patches.engine.import_hooks import find_spec  # noqa: PLC0415

        return find_spec(name, path, target)


finder = _Finder()


class _Loader:
    """Stands in for the loader of a module until that is executed, without the engine's means for it."""

    def __init__(self, loader: "Any") -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        spec: Any = module.__spec__
        spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        cover(module)


def _observed(name: str, path: "Any", target: "ModuleType | None") -> "Any":
    finders: list[Any] = list(sys.meta_path)
    # A finder below that starts over at the top of sys.meta_path, as wrapt's does, meets this one again.
    if finder not in finders or get_ident() in _state.observing:
        return None
    _state.observing.add(get_ident())
    try:
        for below in finders[finders.index(finder) + 1 :]:
            spec = below.find_spec(name, path, target) if hasattr(below, "find_spec") else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
    finally:
        _state.observing.discard(get_ident())
    return None


def _is_open() -> bool:
    """Load the engine during an import of the host, and return whether that worked; only strict mode raises."""
    try:
        activation()
    except Exception as error:
        if door.is_strict():
            raise
        meta_path.take_away(finder)
        _forget_record()
        door.report(vars(sys.modules["_nrl_patches_process"])["path"], error)
        return False
    return True


def _open() -> "Activation":
    from nrl_patches.engine.activation import default_activation  # noqa: PLC0415 - see the module docstring
    from nrl_patches.engine.import_hooks import call_when_executed, stand_in_for  # noqa: PLC0415
    from nrl_patches.processes.attach import attach  # noqa: PLC0415

    found = default_activation()
    found.start()
    attach(found, _state.version, replaced=_files() != _state.files)
    _state.activation = found
    stand_in_for(finder)
    _forget_record()
    if found.settings.enabled:
        call_when_executed(SPAWN, cover)
    return found


def _leave_current_directory() -> None:
    """Take the current directory off the path where ``python -m nrl_patches`` has put it there.

    ``python -m`` looks for modules there first, and in a checkout of transformers that would be the transformers that
    the command reports on. What Python itself imports before it finds this package is out of reach; the installed
    ``nrl-patches`` and, from 3.11 on, ``python -P -m nrl_patches`` do not search the current directory at all.
    """
    # While Python is looking for the module that it has been told to run, sys.argv begins with "-m".
    named = sys.orig_argv[-len(sys.argv) :][:1] if sys.argv[:1] == ["-m"] else []
    is_about_us = any(name.rpartition("-m")[2].partition(".")[0] == "nrl_patches" for name in named)
    if is_about_us and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]


def _files() -> tuple[int, int] | None:
    """Identify this file, to notice an upgrade that replaces it while the process waits."""
    try:
        seen = os.stat(__file__)  # noqa: PTH116 - pathlib takes 4 ms
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns


def _write_record() -> None:
    waits = f"waits for the import of a package with a target: {', '.join(sorted(_state.packages))}"
    path = vars(sys.modules["_nrl_patches_process"])["path"]
    try:
        folder = __file__.rpartition(os.sep)[0]
        # A path that needs escaping is left out: importing json takes as long as everything here.
        plain = folder.isascii() and folder.isprintable() and not {'"', "\\"} & {*folder}
        package = f'"package":"{folder}",' if plain else ""
        text = _RECORD.format(os.getpid(), _state.version, package, path, waits)
        _state.record = door.write_record(text)
        _state.identity = os.fstat(_state.record)[1:3]
    except (OSError, AttributeError, ImportError):  # There are no files in memory here.
        _state.record = -1


def _forget_record() -> None:
    try:  # Daemons close every file descriptor they find, and the number may have been reused.
        if _state.record >= 0 and os.fstat(_state.record)[1:3] == _state.identity:
            os.close(_state.record)
    except OSError:
        pass
    _state.record = -1


def _after_fork() -> None:
    _state.lock = RLock()
    if _state.activation is None and _state.waiting:
        _forget_record()
        _write_record()
