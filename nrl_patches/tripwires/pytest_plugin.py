"""``pytest --nrl-tripwires``: one test per patch in the session of the user."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nrl_patches.declaration import Patch
from nrl_patches.engine.activation import default_activation
from nrl_patches.tripwires.run import PASSING, Verdict, run_tripwire

__all__ = ["TripwirePlugin"]


class TripwirePlugin:
    """Adds the tripwires to whatever else is collected, before ``-k`` and ``-m`` select."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Append one item per patch.

        Args:
            session: The session.
            items: What was collected; extended in place.
        """
        items += [
            _Item.from_parent(session, name=patch.id, nodeid=f"nrl-tripwires::{patch.id}", patch=patch)
            for patch in default_activation().registry
        ]


class _TripwireError(Exception):
    """Carries the verdict's sentence to the report."""


class _Item(pytest.Item):
    def __init__(self, *, patch: Patch, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch = patch

    def runtest(self) -> None:
        tripwire = run_tripwire(self.patch, timeout=self.config.getoption("--nrl-tripwires-timeout"))
        if tripwire.verdict is Verdict.NOT_INSTALLED:
            pytest.skip(tripwire.sentence)
        if tripwire.verdict not in PASSING:
            raise _TripwireError(
                f"{tripwire.id}: {tripwire.verdict}\n"
                f"found:     {tripwire.sentence}\n"
                f"next step: {tripwire.next_step}\n"
                f"file:      {tripwire.file}\n"
                f"upstream:  {tripwire.upstream[0]}"
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, _TripwireError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.session.path, None, f"tripwire {self.name}"
