"""The fuzzer counts what programs do wrong, its inputs are what it says they are, and programs stand some of them."""

import contextlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from benchmarks.fuzz import Fuzzer, all_kinds, share_out
from benchmarks.fuzzing import checkpoints, dicom, lists, nested, nifti, records, sound, text_headers
from benchmarks.fuzzing.checkpoints import Checkpoints
from benchmarks.fuzzing.kind import Input, Single, Workplace, read_mask, same_mask
from benchmarks.fuzzing.lists import DataLists, Folders
from benchmarks.fuzzing.mutant import Maker, Mutant, Pipe
from benchmarks.fuzzing.records import Records
from benchmarks.fuzzing.sandbox import Command, Ended, Sandbox
from benchmarks.fuzzing.scans import Scans
from benchmarks.fuzzing.verdicts import FAULTS, Verdict, crash, refusal, table, unforeseen

SECONDS = 2.0  # without a sign of life, after which a test's program counts as hanging


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace") / "it")


class Script(Single):
    """Gives a program of its own something in a folder."""

    name, share = "script", 1

    def __init__(self, code: str) -> None:
        self.code = code

    def make(self, random: Random, sandbox: Sandbox) -> tuple[Input, Command]:
        script = sandbox.folder / "program.py"
        script.write_text(f"import os, pathlib, signal, sys, time\nos.makedirs('out')\n{self.code}\n")
        return Input("a program"), Command(str(script), [])


def verdict(folder: Path, code: str, hang: float = 30.0) -> Verdict:
    sandbox = Sandbox(folder / "sandbox", hang)
    kind = Script(code)
    inputs, command = kind.prepare([Random(0)], sandbox)
    (found,) = kind.judge(inputs, sandbox.run(command), sandbox)
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('done')", Verdict.RIGHT),
        ("sys.exit(print('error: x: is odd. Mend it.', file=sys.stderr) or 1)", Verdict.REFUSED),
        ("sys.exit(print('usage: …\\nprogram: error: --x is odd', file=sys.stderr) or 2)", Verdict.REFUSED),
        ("sys.exit(print('error: ' + 'A' * 100_000, file=sys.stderr) or 1)", Verdict.UNFORESEEN),
        ("sys.exit(print('error: \\x1b[31m', file=sys.stderr) or 1)", Verdict.UNFORESEEN),
        ("1 / 0", Verdict.TRACEBACK),
        ("import traceback\ntry:\n  1 / 0\nexcept ArithmeticError:\n  traceback.print_exc()", Verdict.TRACEBACK),
        ("sys.exit(1)", Verdict.TRACEBACK),  # without a word
        ("os.kill(os.getpid(), signal.SIGSEGV)", Verdict.DEATH),
        ("os.abort()", Verdict.DEATH),
        ("pathlib.Path('victim/keep/notes.txt').write_text('changed')", Verdict.TOUCHED),
        ("pathlib.Path('victim/keep/notes.txt').unlink()", Verdict.TOUCHED),
        ("pathlib.Path('victim/made').touch()", Verdict.TOUCHED),
        ("os.utime('victim/voxels.raw')", Verdict.TOUCHED),
        ("os.symlink('victim', 'inputs/link')", Verdict.TOUCHED),
        ("os.symlink('../victim/made', 'out/link'); open('out/link', 'w').close()", Verdict.TOUCHED),
        ("pathlib.Path('out/scan.nii.gz').write_bytes(b'no mask')", Verdict.WRONG),
        ("bytearray(20 << 30)", Verdict.TRACEBACK),  # MemoryError, and this machine lives on
    ],
)  # fmt: skip
def test_what_a_program_does_wrong_is_counted(tmp_path: Path, code: str, expected: Verdict) -> None:
    assert verdict(tmp_path, code) is expected


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(1000)",
        "os.mkfifo('out/pipe'); open('out/pipe')",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass",
        "os.fork() or time.sleep(1000); os.wait()",
    ],
)
def test_a_program_that_hangs_is_counted_and_ended_with_its_children(tmp_path: Path, code: str) -> None:
    assert verdict(tmp_path, code, SECONDS) is Verdict.HANG
    deadline = time.monotonic() + 10  # children of what was killed end a moment later
    while left := _processes_in(tmp_path / "sandbox"):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _processes_in(folder: Path) -> list[str]:
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            found += [pid] if os.readlink(f"/proc/{pid}/cwd") == str(folder) else []
    return found


def test_a_program_that_is_slow_but_shows_life_does_not_count_as_hanging(tmp_path: Path) -> None:
    code = f"for n in range(8):\n  time.sleep({SECONDS / 3})\n  open(f'out/{{n}}', 'w').close()"
    assert verdict(tmp_path, code, SECONDS) is Verdict.RIGHT


def test_what_is_wrong_in_a_batch_is_found_in_each_input_alone(tmp_path: Path) -> None:
    fuzzer = Fuzzer(tmp_path / "sandboxes", keep=tmp_path / "keep")
    fuzzer.run(_DiesOfSeven(), range(10))
    assert fuzzer.counts["dies of seven"] == Counter({Verdict.RIGHT: 9, Verdict.DEATH: 1})
    assert [(found.name, found.what) for found in fuzzer.found] == [("dies-of-seven-7", "7")]
    assert "status -11" in (tmp_path / "keep" / "dies-of-seven-7" / "found.txt").read_text()


class _DiesOfSeven(Script):
    """A program that is given numbers, and dies of 7."""

    name, batch = "dies of seven", 10

    def __init__(self) -> None:
        super().__init__("if '7' in os.listdir('inputs'): os.kill(os.getpid(), signal.SIGSEGV)")

    def prepare(self, randoms: object, sandbox: Sandbox) -> tuple[list[Input], Command]:
        first, _, last = sandbox.folder.name.removeprefix("dies-of-seven-").partition("-")
        numbers = range(int(first), int(last or first) + 1)
        for number in numbers:
            (sandbox.folder / "inputs" / str(number)).touch()
        _, command = self.make(Random(0), sandbox)
        return [Input(str(number)) for number in numbers], command

    def judge(self, inputs: object, ended: Ended, sandbox: Sandbox) -> list[Verdict]:
        assert isinstance(inputs, list)
        return [crash(ended) or Verdict.RIGHT] * len(inputs)


def test_the_table_has_a_row_for_each_kind_and_their_sum() -> None:
    counts = {
        "NIfTI": Counter({Verdict.RIGHT: 3, Verdict.DEATH: 1}),
        "NRRD": Counter({Verdict.REFUSED: 2, Verdict.TOUCHED: 1}),
    }
    head, _, *rows = table(counts)
    assert head.split("|")[-5:-1] == [" tracebacks ", " hangs ", " deaths ", " files touched outside "]
    assert rows == [
        "| NIfTI | 4 | 3 | 0 | 0 | 0 | 0 | 0 | 0 | 1 | 0 |",
        "| NRRD | 3 | 0 | 2 | 0 | 0 | 0 | 0 | 0 | 0 | 1 |",
        "| all | 7 | 3 | 2 | 0 | 0 | 0 | 0 | 0 | 1 | 1 |",
    ]


def test_a_logged_exception_that_nobody_foresaw_is_told_from_an_error_of_ours(tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    frame = 'Traceback (most recent call last):\n  File "x.py", line 1, in read\n    1 / 0\n'
    entries = [
        f"inputs/000_odd/scan.nii\n{frame}utils.system.errors.InputError: inputs/000_odd/scan.nii: is odd.\n",
        f"inputs/001_odd/scan.nii\n{frame}ZeroDivisionError: division by zero\n",
        f"inputs/002_odd/scan.nii\n{frame}KeyError: 'x'\n\nDuring handling of the above exception, another exception "
        f"occurred:\n\n{frame}utils.system.errors.WriteError: out: can't be written\n",
    ]
    log.write_text("\n".join(entries))
    assert unforeseen(log) == ["inputs/001_odd/scan.nii\nZeroDivisionError: division by zero"]


def test_a_refusal_is_a_line_that_a_person_can_read() -> None:
    assert refusal("error: a.nii: is cut off. Copy it again.") is Verdict.REFUSED
    assert refusal("error: a.nii: has \0 in it") is Verdict.UNFORESEEN


def test_inputs_are_shared_out_over_all_kinds(workplace: Workplace) -> None:
    kinds = all_kinds(workplace)
    commands = share_out(5000, kinds)
    assert abs(sum(len(numbers) for _, numbers in commands) - 5000) <= len(kinds)
    assert {kind.name for kind, _ in commands} == {
        *("NIfTI", "NRRD", "MetaImage", "DICOM", "checkpoints", "data lists", "folders", "records"),
    }


@pytest.mark.parametrize("maker", [nifti.write, text_headers.write_nrrd, text_headers.write_meta_image, dicom.write])
def test_the_same_seed_makes_the_same_scans_and_others_differ(maker: Maker) -> None:
    victim = Path("/victim")
    again = [maker(Random(seed), victim) for seed in range(30)]
    assert [maker(Random(seed), victim) for seed in range(30)] == again
    assert len({str(mutant.files) for mutant in again}) > 25


def test_the_sound_scan_is_the_same_in_all_formats(tmp_path: Path) -> None:
    Mutant("", {"a.nii.gz": nifti.sound_file()}).write(tmp_path)
    image = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), sound.voxels())  # type: ignore[attr-defined]
    for name, content in {**text_headers.sound_nrrd(), **text_headers.sound_meta_image()}.items():
        (tmp_path / name).write_bytes(content)
        read = sitk.ReadImage(str(tmp_path / name))
        assert np.array_equal(sitk.GetArrayFromImage(read).T, sound.voxels())
        np.testing.assert_allclose(read.GetSpacing(), sound.SPACING)
        np.testing.assert_allclose(np.diag([-1, -1, 1]) @ read.GetOrigin(), sound.affine()[:3, 3])
    Mutant("", dicom.sound_series()).write(tmp_path / "series")
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "series").iterdir())]
    assert [float(one.ImagePositionPatient[2]) for one in slices] == [30 + 14 * number for number in range(8)]
    assert np.array_equal(np.stack([one.pixel_array.T for one in slices], 2).astype(int) - 1024, sound.voxels())


def test_a_change_of_nested_values_changes_them_at_one_place() -> None:
    for seed in range(200):
        value = {"a": [1, 2, {"b": 3.0}], "c": "text"}
        described = nested.change(Random(seed), value)
        assert described
        assert repr(value) != repr({"a": [1, 2, {"b": 3.0}], "c": "text"}) or " is " in described


def test_masks_that_are_none_are_told(tmp_path: Path) -> None:
    labels = sound.labels()
    (tmp_path / "a.nii.gz").write_bytes(nifti.file_of(labels))
    mask = read_mask(tmp_path / "a.nii.gz")
    assert mask is not None
    assert same_mask(mask, (labels, sound.affine()))
    assert not same_mask(mask, (labels, sound.affine() + np.eye(4)))
    assert not same_mask(mask, (labels[::-1], sound.affine()))
    (tmp_path / "b.nii.gz").write_bytes(nifti.file_of(labels.astype(np.float32)))
    assert read_mask(tmp_path / "b.nii.gz") is None
    assert read_mask(tmp_path / "nothing.nii.gz") is None


def test_scans_of_files_outside_and_of_fewer_slices_count_as_wrong(workplace: Workplace, tmp_path: Path) -> None:
    """Whatever the programs make of odd scans: here the changed ones are sound, and only say they are odd."""
    short = {name: content for name, content in dicom.sound_series("1.2.3.4").items() if name != "IM007"}
    mutants = [
        Mutant("sound", {"scan.nii.gz": nifti.sound_file()}, harmless=True),
        Mutant("says that it is outside", {"scan.nii.gz": nifti.sound_file()}, outside=True),
        Mutant("other voxels", {"scan.nii.gz": nifti.file_of(sound.voxels()[::-1])}, harmless=True),
        Mutant("no scan", {"notes.txt": b"hello"}),
        Mutant("cut off", {"scan.nii.gz": nifti.sound_file()[:500]}),
        Mutant("a slice short", short, slices=8),
    ]
    left = iter(mutants)
    kind = Scans(workplace, "scans", 1, lambda random, victim: next(left))
    sandbox = Sandbox(tmp_path / "sandbox")
    inputs, command = kind.prepare([Random(0)] * len(mutants), sandbox)
    ended = sandbox.run(command)
    assert kind.judge(inputs, ended, sandbox) == [
        *(Verdict.RIGHT, Verdict.WRONG, Verdict.WRONG, Verdict.LEFT_OUT, Verdict.REFUSED, Verdict.WRONG),
    ]
    sound_masks = list(sandbox.out.glob("*sound*.nii.gz"))
    assert len(sound_masks) == 3
    sound_masks[0].unlink()  # now a sound scan has lost its mask
    assert set(kind.judge(inputs, ended, sandbox)) == {Verdict.WRONG}


@pytest.mark.parametrize(("kind", "times"), [(Checkpoints, 8), (DataLists, 4), (Folders, 1), (Records, 2)])
def test_what_is_not_changed_gives_right_results(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Single], times: int
) -> None:
    """Or else a program would refuse the changed ones for another reason than the change."""
    monkeypatch.setattr(checkpoints, "_WAYS", [lambda random, content: ("nothing", checkpoints.saved(content), True)])
    monkeypatch.setattr(checkpoints, "_SHARES", [1])
    monkeypatch.setattr(lists, "_changed_list", lambda random, content: ("nothing", json.dumps(content).encode(), True))
    monkeypatch.setattr(lists, "_ODD_FILES", [lambda random, data, victim: "nothing"])
    monkeypatch.setattr(records, "_planted", lambda random, sandbox: ("nothing", False))
    monkeypatch.setattr(records, "_changed_record", lambda random, path: "nothing")
    fuzzer = Fuzzer(tmp_path / "sandboxes")
    one = kind(workplace)
    for number in range(times):
        fuzzer.run(one, [number])
    assert fuzzer.counts[one.name] == Counter({Verdict.RIGHT: times})


def test_some_inputs_of_each_kind(workplace: Workplace, tmp_path: Path) -> None:
    fuzzer = Fuzzer(tmp_path / "sandboxes", seed=1)
    for kind, numbers in share_out(40, all_kinds(workplace)):
        fuzzer.run(kind, numbers)
    assert [str(found) for found in fuzzer.found if found.verdict in FAULTS] == []
    assert sum(count.total() for count in fuzzer.counts.values()) >= 36


def test_pipes_are_among_what_lies_beside_a_header() -> None:
    mutants = [text_headers.write_meta_image(Random(seed), Path("/victim")) for seed in range(40)]
    assert any(isinstance(content, Pipe) for mutant in mutants for content in mutant.files.values())
