import pytest
from package_copy import Copy


@pytest.fixture
def copy(tmp_path):
    """A copy of the package whose only patch is for an affected stand-in distribution."""
    copy = Copy(tmp_path)
    copy.upstream()
    copy.patch()
    return copy
