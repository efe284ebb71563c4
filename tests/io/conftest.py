"""What the tests of this folder share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def nothing_beside(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """No reader puts lines of its own beside ours, not even from C++."""
    yield
    assert capfd.readouterr() == ("", "")
    assert [str(one.message) for one in recwarn] == []
