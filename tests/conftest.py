import pytest
from standins import COUNT, Sandbox

from nrl_patches.engine.import_hooks import withdraw


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
