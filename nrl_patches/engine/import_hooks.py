"""Post-import hooks: call back whenever a module has finished executing.

wrapt's own ``register_post_import_hook`` does not guarantee what activation needs. Three differences, which
``tests/engine/test_import_hooks.py`` reproduces with wrapt 2.5.2: it fires only once (a reload or a second import goes
unseen), it fires immediately for a module that another frame is still executing, and its finder imports the parent
package on the way, which deadlocks when that package is waiting for the thread that imports the child. This hook leaves
the search to the finders below it and observes only the execution.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import wrapt

from nrl_patches import meta_path
from nrl_patches.engine.module_bodies import BodyEditor, execute
from nrl_patches.engine.module_state import is_executing, is_lazy, namespace

if TYPE_CHECKING:
    from importlib.abc import Loader

    _Proxy = wrapt.ObjectProxy[Any]  # Generic for type checkers only.
else:
    _Proxy = wrapt.ObjectProxy

__all__ = [
    "Hook",
    "call_when_bypassed",
    "call_when_executed",
    "edit_when_executed",
    "find_spec",
    "keep_first",
    "stand_in_for",
    "withdraw",
]

Hook = Callable[[ModuleType], None]

# On the spec itself, so that a second copy of this package finds them too.
_WATCHERS = "_nrl_patches_watchers"

_hooks: dict[str, list[Hook]] = {}
_editors: dict[str, list[BodyEditor]] = {}
_bypassed: list[Callable[[], None]] = []
_lock = threading.Lock()


def call_when_executed(name: str, hook: Hook) -> None:
    """Call ``hook(module)`` each time the module ``name`` has been executed: import, second import, reload.

    A module that is already there counts as executed and the hook is called at once; one that is still being executed
    (by a frame below this one, or by another thread) is waited for without blocking. An
    exception of the hook propagates to the import of the module.

    Args:
        name: The absolute name of the module.
        hook: Called with the module as ``sys.modules`` holds it, in the thread that executed it. It may be called
            more than once for one execution.
    """
    with _lock:
        hooks = _hooks.setdefault(name, [])
        if hook not in hooks:
            hooks.append(hook)
    keep_first()
    module = sys.modules.get(name)
    if not isinstance(module, ModuleType):
        return
    spec = namespace(module).get("__spec__")
    if is_lazy(module):
        _observe(spec)
        return
    # Watch first, then look: an execution that ends in between calls back, one that ended before is seen here.
    if isinstance(spec, ModuleSpec) and is_executing(name):
        spec.__dict__.setdefault(_WATCHERS, []).append(_notify)
        if type(spec) is ModuleSpec:
            spec.__class__ = _WatchedSpec
    if not is_executing(name):
        hook(module)


def edit_when_executed(name: str, editor: BodyEditor) -> None:
    """Let an editor change the source of the module ``name`` each time before it is executed.

    It is asked only where :func:`call_when_executed` waits for the module too.

    Args:
        name: The absolute name of the module.
        editor: Called in the thread that executes the module; what it raises propagates to the import.
    """
    with _lock:
        editors = _editors.setdefault(name, [])
        if editor not in editors:
            editors.append(editor)


def withdraw(hook: Hook | BodyEditor) -> None:
    """Forget a hook or an editor, for every module that it waits for.

    Args:
        hook: One that was passed to :func:`call_when_executed` or :func:`edit_when_executed`, compared by equality;
            others are ignored.
    """
    waiting: Any
    with _lock:
        for waiting in (_hooks, _editors):
            for name in [name for name, hooks in waiting.items() if hook in hooks]:
                waiting[name].remove(hook)
                if not waiting[name]:
                    del waiting[name]


def call_when_bypassed(listener: Callable[[], None]) -> None:
    """Call ``listener()`` whenever others are found to have replaced ``sys.meta_path``.

    What was imported in the meantime was not observed. That is noticed by the next import that asks the hooks' finder,
    or when :func:`keep_first` is called.

    Args:
        listener: Called in the thread that imports, without a lock; there is no way to remove it.
    """
    _bypassed.append(listener)


def keep_first() -> bool:
    """Let the import system ask the hooks' finder first, if there are hooks.

    Returns:
        Whether it was not first before; see :func:`nrl_patches.meta_path.put_first`.
    """
    return bool(_hooks) and meta_path.put_first(_finder)


def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """Return what the hooks' finder finds: for one that has stood in for it, in the middle of a search."""
    return _finder.find_spec(name, path, target)


def stand_in_for(finder: object) -> None:
    """Put the hooks' finder in the place of one that waited in ``sys.meta_path`` until the hooks were needed.

    Args:
        finder: The finder to replace; without it in the list, nothing happens.
    """
    meta_path.take_away(finder, heir=_finder)


def _notify(name: str) -> None:
    module = sys.modules.get(name)
    if module is not None:
        for hook in tuple(_hooks.get(name, ())):
            hook(module)


def _observe(spec: ModuleSpec | None) -> None:
    if spec is not None and hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, _Loader):
        spec.loader = cast("Loader", _Loader(spec.loader))


class _WatchedSpec(ModuleSpec):
    """The spec of a module whose execution began before there was a hook for it.

    The import system sets ``_initializing`` to False when the execution is over, in the importing thread and before
    it releases the module's lock: the only moment at which such a module can be observed.
    """

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[Any, ...]:
        """Copy and pickle as a plain ``ModuleSpec``, which it was before and becomes again."""
        state = {name: value for name, value in self.__dict__.items() if name != _WATCHERS}
        return ModuleSpec, (self.name, self.loader), state

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing"))

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        if not value:
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            try:
                for watcher in self.__dict__.pop(_WATCHERS, ()):
                    watcher(self.name)
            except BaseException:
                sys.modules.pop(self.name, None)  # As after any failed import: the next one starts over.
                raise


class _Loader(_Proxy):
    """Stands in for a module's loader until the module is executed."""

    def exec_module(self, module: ModuleType) -> None:
        """Restore the real loader on the module and its spec, let it execute the module, then notify."""
        spec: Any = namespace(module).get("__spec__")
        if spec is not None and spec.loader is self:
            spec.loader = self.__wrapped__
        if namespace(module).get("__loader__") is self:
            namespace(module)["__loader__"] = self.__wrapped__
        name = namespace(module)["__name__"] if spec is None else spec.name
        editors = tuple(_editors.get(name, ()))
        if isinstance(self.__wrapped__, importlib.util.LazyLoader):
            self.__wrapped__.exec_module(module)
            _observe(spec)
            return
        if not editors or not execute(self.__wrapped__, module, editors):
            self.__wrapped__.exec_module(module)
        _notify(name)

    def __copy__(self) -> _Loader:
        """Copy the real loader; the copy is observed as well."""
        return _Loader(copy.copy(self.__wrapped__))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Loader:
        """Copy the real loader; the copy is observed as well."""
        return _Loader(copy.deepcopy(self.__wrapped__, memo))

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle as the real loader, so that unpickling does not need this package."""
        return self.__wrapped__.__reduce_ex__(protocol)  # type: ignore[no-any-return]


class _Finder(MetaPathFinder):
    """Delegates to the finders below it, and observes the loaders of modules that have a hook."""

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the finders below return, with its loader observed; None for a module without hooks."""
        if keep_first():
            for listener in tuple(_bypassed):
                listener()
        # A finder below that starts over at the top of sys.meta_path, as wrapt's does, meets this one again.
        if fullname not in _hooks or getattr(self._asking, "name", None) == fullname:
            return None
        self._asking.name = fullname
        try:
            spec = _first_spec(self, fullname, path, target)
        finally:
            self._asking.name = None
        _observe(spec)
        return spec


def _first_spec(above: _Finder, fullname: str, path: Any, target: ModuleType | None) -> ModuleSpec | None:
    finders = list(sys.meta_path)
    for finder in finders[finders.index(above) + 1 :]:
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(fullname, path, target) if find_spec is not None else None
        if spec is not None:
            return spec  # type: ignore[no-any-return]
    return None


_finder = _Finder()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
