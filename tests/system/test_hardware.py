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


@pytest.mark.parametrize("prefix", ["", "total_"])  # of cgroups in version 2 and 1
def test_files_that_a_container_keeps_in_memory_are_free(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "current").write_text("999000\n")
    others = "inactive_file 7\n" if prefix else ""  # of this group alone
    (tmp_path / "memory.stat").write_text(
        f"anon 400000\n{others}{prefix}inactive_file 300000\n{prefix}active_file 200000\nfile 599000\n"
    )
    assert available_memory() == 501_000
