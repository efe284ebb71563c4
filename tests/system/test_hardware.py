"""How much memory there is, for the machine and for a container."""

from pathlib import Path

import pytest

from utils.system import hardware
from utils.system.hardware import available_memory, total_memory


def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    free = available_memory()
    assert 0 < free <= total_memory()
    (tmp_path / "current").write_text("400000\n")
    (tmp_path / "max").write_text("max\n")
    assert available_memory() > 1_000_000  # no limit
    (tmp_path / "max").write_text("1000000\n")
    assert available_memory() == 600_000
    (tmp_path / "current").write_text("2000000\n")
    assert available_memory() == 0
