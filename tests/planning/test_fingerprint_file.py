"""Scans are read once, until they change; and the file that remembers them is never trusted blindly."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.planning.test_facts import box, make_scan, ramp
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.planning import fingerprint_file
from utils.planning.fingerprint import Fingerprint, ScanFacts
from utils.planning.fingerprint_file import FingerprintFile
from utils.system.errors import InputError, Stopped

PROCESS = Process(torch.device("cpu"))


def write_scan(folder: Path, number: int, factor: float = 1.0) -> Scan:
    return make_scan(folder, ramp() * factor + number, box(), name=f"img{number}")


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    (tmp_path / "data").mkdir()
    return [write_scan(tmp_path / "data", number) for number in (3, 1, 2)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the scans that were read since the list was last cleared."""
    names: list[str] = []
    examine = fingerprint_file.examine

    def counted(scan: Scan) -> object:
        names.append(scan.name)
        return examine(scan)

    monkeypatch.setattr(fingerprint_file, "examine", counted)
    return names


def plan(scans: list[Scan], timings: dict[str, float] | None = None) -> tuple[ScanFacts, ...]:
    """What the command does."""
    file = FingerprintFile(scans[0].path.parent)
    facts = file.gather(scans, 2, PROCESS)
    file.timings |= timings or {}
    file.save(Fingerprint(facts, ("background", "organ"), True, ("CT",), len(scans) - 1, 1))
    return facts


def content(scans: list[Scan]) -> bytes:
    return (scans[0].path.parent / "fingerprint.json").read_bytes()


def test_scans_come_in_the_order_of_their_names_and_each_once(scans: list[Scan], reads: list[str]) -> None:
    assert [facts.name for facts in plan([*scans, scans[0]])] == ["img1", "img2", "img3"]
    assert sorted(reads) == ["img1", "img2", "img3"]


def test_a_second_call_reads_nothing_and_writes_the_same(scans: list[Scan], reads: list[str]) -> None:
    first, written = plan(scans), content(scans)
    reads.clear()
    assert plan(scans) == first
    assert reads == []
    assert content(scans) == written


def test_from_nothing_the_same_is_written_again(scans: list[Scan]) -> None:
    plan(scans)
    written = content(scans)
    (scans[0].path.parent / "fingerprint.json").unlink()
    plan(scans[::-1])
    assert content(scans) == written
    assert str(scans[0].path.parent) not in written.decode()


def test_a_folder_that_was_moved_is_known(scans: list[Scan], reads: list[str], tmp_path: Path) -> None:
    first = plan(scans)
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = [Scan(s.name, (tmp_path / "moved" / s.path.name,), tmp_path / "moved" / str(s.label and s.label.name))
             for s in scans]  # fmt: skip
    reads.clear()
    assert plan(moved) == first
    assert reads == []


def test_changed_scans_are_read_again_new_ones_too_and_those_that_are_gone_dropped(
    scans: list[Scan], reads: list[str]
) -> None:
    folder = scans[0].path.parent
    plan(scans)
    reads.clear()
    changed, new = write_scan(folder, 2, factor=3.0), write_scan(folder, 4)
    facts = plan([scans[1], changed, new])
    assert sorted(reads) == ["img2", "img4"]
    assert [one.name for one in facts] == ["img1", "img2", "img4"]
    assert facts[1].quantiles[0][-1] == pytest.approx(3 * (20 * 24 * 30 - 1) + 2, rel=1e-5)
    assert [known["facts"]["name"] for known in json.loads(content(scans))["scans"]] == ["img1", "img2", "img4"]


def test_a_changed_label_is_read_again(scans: list[Scan], reads: list[str]) -> None:
    plan(scans)
    reads.clear()
    label = scans[1].label
    assert label is not None
    os.utime(label, ns=(1, 1))
    plan(scans)
    assert reads == ["img1"]


def edited(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:  # type: ignore[type-arg]
    def edit(written: bytes) -> bytes:
        parsed = json.loads(written)
        change(parsed)
        return json.dumps(parsed).encode()

    return edit


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no JSON": lambda _: b"hello",
    "no text": lambda _: b"\xff\xfe\x00",
    "nested too deep": lambda _: b"[" * 100_000,
    "cut off": lambda written: written[: len(written) // 2],
    "a list": lambda _: b"[]",
    "another version": edited(lambda parsed: parsed.update(format=0)),
    "no version": edited(lambda parsed: parsed.pop("format")),
    "text for a number": edited(lambda parsed: parsed["scans"][0]["facts"].update(spacing=["1", "2", "3"])),
    "two numbers for three": edited(lambda parsed: parsed["scans"][0]["facts"].update(shape=[1, 2])),
    "a missing fact": edited(lambda parsed: parsed["scans"][0]["facts"].pop("quantiles")),
    "a truth value": edited(lambda parsed: parsed["scans"][0]["facts"]["structures"]["1"].update(voxels=True)),
    "a time below zero": edited(lambda parsed: parsed.update(timings={"unetr": -1.0})),
    "an endless time": edited(lambda parsed: parsed.update(timings={"unetr": float("inf")})),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_made_anew(scans: list[Scan], reads: list[str], name: str) -> None:
    first, written = plan(scans), content(scans)
    path = scans[0].path.parent / "fingerprint.json"
    path.write_bytes(DAMAGE[name](written))
    reads.clear()
    note = FingerprintFile(path.parent).note
    assert note is not None
    assert note.startswith(f"{path}: is damaged or of another version (")
    assert "\n" not in note
    assert plan(scans) == first
    assert len(reads) == 3
    assert content(scans) == written
    assert FingerprintFile(path.parent).note is None


def test_edited_facts_of_a_scan_are_measured_again(scans: list[Scan], reads: list[str]) -> None:
    first, written = plan(scans), content(scans)
    (scans[0].path.parent / "fingerprint.json").write_bytes(
        edited(lambda parsed: parsed["scans"][1]["facts"].update(spacing=[9.0, 9.0, 9.0]))(written)
    )
    reads.clear()
    assert plan(scans) == first
    assert reads == ["img2"]
    assert content(scans) == written


def test_timings_are_kept(scans: list[Scan]) -> None:
    plan(scans, {"unetr 96": 1.25})
    plan(scans, {"dynunet 64": 0.5})
    assert FingerprintFile(scans[0].path.parent).timings == {"unetr 96": 1.25, "dynunet 64": 0.5}


def test_it_is_not_written_through_a_link(scans: list[Scan], tmp_path: Path) -> None:
    other, path = tmp_path / "other.txt", scans[0].path.parent / "fingerprint.json"
    other.write_text("mine")
    path.symlink_to(other)
    plan(scans)
    assert other.read_text() == "mine"
    assert not path.is_symlink()


def test_a_pipe_in_its_place_is_not_waited_for(scans: list[Scan]) -> None:
    path = scans[0].path.parent / "fingerprint.json"
    os.mkfifo(path)
    file = FingerprintFile(path.parent)
    assert file.note is not None
    assert "is a pipe" in file.note
    plan(scans)
    assert path.is_file()


def test_all_faults_are_listed_and_sound_scans_stay_known(scans: list[Scan], reads: list[str]) -> None:
    folder = scans[0].path.parent
    bad = [make_scan(folder, np.full((4, 5, 6), 7.0), box()[:4, :5, :6], name="img8"), write_scan(folder, 9)]
    bad[1].path.write_bytes(b"hello")
    with pytest.raises(InputError) as raised:
        plan([*scans, *bad])
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("2 faults in the data")
    assert "img8.nii.gz: every voxel is 7" in lines[1]
    assert "img9.nii.gz: is no volume" in lines[2]
    reads.clear()
    assert len(plan(scans)) == 3
    assert reads == []


def test_scans_that_were_read_before_a_signal_stay_known(
    scans: list[Scan], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = Process.bar

    def stopped(self: Process, items: Iterable[object], desc: str, total: int) -> Iterator[object]:
        yield next(iter(bar(self, items, desc, total)))
        raise Stopped(15)

    monkeypatch.setattr(Process, "bar", stopped)
    with pytest.raises(Stopped):
        FingerprintFile(scans[0].path.parent).gather(scans, 1, PROCESS)
    monkeypatch.undo()
    known = {one["facts"]["name"] for one in json.loads(content(scans))["scans"]}
    assert known == {"img3"}


def test_a_disk_that_refuses_does_not_hide_a_fault(scans: list[Scan]) -> None:
    (scans[0].path.parent / "fingerprint.json").mkdir()
    scans[1].path.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"img1\.nii\.gz: is no volume"):
        FingerprintFile(scans[0].path.parent).gather(scans, 1, PROCESS)


def test_the_summary_is_for_people(scans: list[Scan]) -> None:
    plan(scans)
    written = json.loads(content(scans))
    assert written["number_of_scans"] == 3
    assert written["orientations"] == {"RAS": 3}
    assert written["spacing_mm"]["median"] == [1.0, 2.0, 3.0]
    (organ,) = written["labels"]
    assert (organ["name"], organ["scans"]) == ("organ", 3)
    assert organ["volume_ml"] == {"lowest": 1.152, "median": 1.152, "highest": 1.152}
    assert organ["extent_mm"]["highest"] == [4.0, 12.0, 24.0]
    assert list(written["labelled_intensities"][0]) == ["0.5 %", "50 %", "99.5 %"]
    assert '"highest": [4.0, 12.0, 24.0]' in content(scans).decode()
