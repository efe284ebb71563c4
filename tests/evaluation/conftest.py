"""What tests of pages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser, browser


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Browser]:
    """A tab of a browser, where there is one."""
    if CHROMIUM is None:
        pytest.skip("no chromium in PATH: nothing to open the page with")
    with browser(tmp_path / "profile") as opened:
        yield opened
