"""How a patch file declares its patch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from nrl_patches.defect import BUILTIN_PATCHES, Defect
from nrl_patches.edits import Edit, Transform
from nrl_patches.engine.rewriting import Rewrite
from nrl_patches.fixes import Build, Fix, Guard

__all__ = ["HEADINGS", "Guard", "Patch"]

HEADINGS = ("Problem", "Hit by", "Fix", "Remove when")
"""The headings that the docstring of a patch file must have, each as ``Heading:`` at the start of a line."""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_TARGET = re.compile(rf"{_MODULE.pattern}:{_MODULE.pattern}")
_REWRITABLE = re.compile(rf"{_MODULE.pattern}(:{_MODULE.pattern})?")
_OPT_OUT = re.compile(r"[A-Z][A-Z0-9_]*_DISABLE_[A-Z0-9_]+")

_BuildT = TypeVar("_BuildT", bound=Build)


class Patch(Defect):
    """One workaround for one upstream defect. A patch file creates exactly one, under the name ``patch``.

    Args:
        module: ``__name__`` of the patch file. The id is its path below ``nrl_patches.patches``.
        opt_out: The environment variable (``NRL_DISABLE_…``, of other parties ``<DISTRIBUTION>_DISABLE_…``) that
            switches off this patch; several patches share one
            only if they are for one defect.
        required: Whether running without it is worse than not running: a target that could not be fixed then raises
            when it is called, rather than computing something wrong.
        declared: The fields of :class:`Defect`; ``affected`` names releases here.

    Raises:
        DeclarationError: A field is missing, unknown or malformed; the message names the file.
    """

    headings: ClassVar[tuple[str, ...]] = HEADINGS

    def __init__(self, module: str, *, opt_out: str = "", required: bool = False, **declared: Any) -> None:
        self.opt_out = opt_out
        self.required = required
        super().__init__(module, **declared)

    def _other_problems(self) -> list[str]:
        own = self.module.startswith(BUILTIN_PATCHES)
        if not _OPT_OUT.fullmatch(self.opt_out) or (own and not self.opt_out.startswith("NRL_DISABLE_")):
            return [f"opt_out: needs a variable named NRL_DISABLE_…, not {self.opt_out!r}"]
        return []

    def fix(self, target: str, *, guard: Guard) -> Callable[[_BuildT], _BuildT]:
        """Declare the decorated function as the build of a :class:`Fix`.

        Args:
            target: See :class:`Fix`.
            guard: See :class:`Fix`.

        Returns:
            A decorator that declares a build and returns it as it is.

        Raises:
            DeclarationError: The target has not the form ``module:qualname``, belongs to none of the distributions in
                ``affected``, or has a fix already.
        """
        self._check_target(target, _TARGET)

        def declare(build: _BuildT) -> _BuildT:
            self.fixes = (*self.fixes, Fix(target, build, guard))
            return build

        return declare

    def rewrite(self, target: str, *edits: Edit | Transform, only_for_import: bool = False) -> None:
        """Declare that the source of a target is rewritten in memory, where a line in the middle of it is wrong.

        Each edit has to match exactly once, which is the guard of the fix; where one does not, the patch has drifted.
        Prefer :meth:`fix` where the defect can be repaired around the target: that survives more changes of upstream.

        Args:
            target: ``module:qualname`` of a function or method; or ``module``, for statements that are executed when it
                is imported. Those cannot be undone, and not be applied to a module that was imported before.
            edits: What to change: texts, or functions over the syntax of the target; see :mod:`nrl_patches.edits`.
            only_for_import: Whether the defect is that the import of the module raises. A module that was imported
                before needs no edits then, and the patch is ``not-affected`` instead of ``drifted``.

        Raises:
            DeclarationError: No edits, one without old lines, or the same as for :meth:`fix`.
        """
        self._check_target(target, _REWRITABLE)
        if not edits or any(isinstance(edit, Edit) and not edit.old.strip() for edit in edits):
            raise self.error(f"rewrite: {target!r} has no edits, or one without old lines")
        build = Rewrite(edits, only_for_import=only_for_import)
        self.fixes = (*self.fixes, Fix(target, build, build.mismatch))

    def _check_target(self, target: str, form: re.Pattern[str]) -> None:
        if not form.fullmatch(target):
            raise self.error(f"fix: target needs the form module:qualname, not {target!r}")
        if not self.is_about(target):
            raise self.error(f"fix: {target!r} belongs to none of the distributions in affected")
        if target in {fix.target for fix in self.fixes}:
            raise self.error(f"fix: {target!r} has two fixes")

    def check(self) -> None:
        """Check what is only known when the patch file has been executed.

        Raises:
            DeclarationError: No fix, no probe, or a docstring without one of the :data:`HEADINGS`.
        """
        if not self.fixes:
            raise self.error("fix: has none")
        if not self.has_probe:
            raise self.error("probe: has none")
        self.check_headings()
