import compileall
import os
import sys
from pathlib import Path
from unittest import mock

import forks
import pytest
from standins import COUNT, ROOT, Sandbox

from nrl_patches.engine.import_hooks import withdraw

# The commands would print what is for a terminal into the pipes of the tests.
os.environ.pop("FORCE_COLOR", None)

HERE = Path(__file__).parent
SLOW = {
    "patches": "releases",
    "processes": "processes",
    "authoring": "processes",
    "contributed": "processes",
    "tripwires": "processes",
    "test_contract.py": "releases",
    "test_matrix_command.py": "processes",
    "test_update.py": "processes",
    "test_lowest_dependencies.py": "processes",
    "test_forks.py": "processes",
    "test_both_sides.py": "releases",
    "test_packed_families.py": "releases",
}
"""The marker of what lies there, by a part of the path; everything else is ``fast``."""


def pytest_configure(config):
    """Compile this package: under PYTHONDONTWRITEBYTECODE each of a thousand processes would compile all of it."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(ROOT / "nrl_patches", quiet=1)


def pytest_collection_modifyitems(items):
    """Mark every test by what it needs: upstream releases, whole processes, or neither."""
    for item in items:
        markers = {SLOW[part] for part in item.path.relative_to(HERE).parts if part in SLOW}
        markers |= {"releases" for mark in item.iter_markers("xdist_group") if "==" in str(mark.args)}
        for marker in sorted(markers) or ["fast"]:
            item.add_marker(marker)


class Failures:
    """Tells what failed when it fails: a run of half an hour may be stopped before its end."""

    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.terminal.ensure_newline()
            self.terminal.write_line(f"{report.nodeid}: {crash.message if crash else report.longrepr}"[:1000])


def pytest_sessionstart(session):
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Failures(terminal))


@pytest.fixture(autouse=True)
def _what_compiling_leaves():
    # What a test compiles leaves TORCHINDUCTOR_CACHE_DIR behind, and forks.py compares what torch reads at its start.
    with mock.patch.dict(os.environ):
        yield
    # And a statistic, by which the engine knows that something may be traced.
    getattr(sys.modules.get("torch._dynamo.utils"), "counters", {}).clear()


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    box = Sandbox(tmp_path)
    yield box
    box.clean()


@pytest.fixture
def hook():
    """A hook that remembers the modules it was called with."""
    calls = []

    def remember(module):
        calls.append(module)

    remember.calls = calls
    yield remember
    withdraw(remember)


@pytest.fixture
def counting(sandbox):
    """An affected release and a patch for it."""
    sandbox.distribution("1.0", core=COUNT)
    sandbox.patch()
    return sandbox


def pytest_sessionfinish():
    """End the processes that the tests have shared."""
    forks.close()
