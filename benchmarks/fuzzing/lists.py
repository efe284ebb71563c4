"""Data lists whose values, structure or text were changed, and folders of odd files that lists are made for."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing import nested, nifti, text_headers
from benchmarks.fuzzing.kind import TRAINING, Input, Single, copy_data
from benchmarks.fuzzing.mutant import Link, Mutant, Pipe, with_bytes_changed
from benchmarks.fuzzing.sandbox import Command, Sandbox
from utils.system.files import UNFINISHED

LIST = "dataset_0.json"
FOLDS = 2
DEEP = 100_000


class DataLists(Single):
    """Data lists for ``main.py`` and ``test.py``."""

    name, share = "data lists", 7

    def make(self, random: Random, sandbox: Sandbox) -> tuple[Input, Command]:
        """Write a data list beside sound scans, and say what reads it."""
        data = sandbox.folder / "data"
        copy_data(self.workplace, data)
        Mutant("", {"pipe": Pipe(), "loop.nii.gz": Link("loop.nii.gz"), "pipe.nii.gz": Pipe()}).write(data)
        content = json.loads((data / LIST).read_text())
        what, text, harmless = _changed_list(random, content)
        (data / LIST).write_bytes(text)
        if random.random() < 0.5:
            flags = [*TRAINING, "--data_dir=data", "--logdir=run", "--max_epochs=1", "--val_every=1"]
            return Input(f"{what}, for main", harmless), Command("main.py", flags, writes=("runs",))
        split = random.choice(("validation", "test", "training"))
        more = [flag for flag in ("--one_file_per_organ", "--save_probabilities") if random.random() < 0.3]
        command = self.workplace.test("--data_dir=data", f"--split={split}", *more)
        return Input(f"{what}, for test of {split}"), command


class Folders(Single):
    """Folders of scans, among them odd ones, for ``utils.make_data_list``."""

    name, share = "folders", 4

    def make(self, random: Random, sandbox: Sandbox) -> tuple[Input, Command]:
        """Write a folder of scans, and say what makes its lists."""
        data = sandbox.folder / "data"
        copy_data(self.workplace, data)
        (data / "imagesTr" / "sound.nii.gz").unlink()
        (data / LIST).unlink()
        what = [random.choice(_ODD_FILES)(random, data, sandbox.victim) for _ in range(random.choice((1, 1, 2)))]
        flags = ["--data_dir=data", f"--folds={FOLDS}", *(["--overwrite"] if random.random() < 0.3 else [])]
        lists = [f"data/dataset_{fold}.json{ending}" for fold in range(FOLDS) for ending in ("", UNFINISHED)]
        return Input("; ".join(what)), Command("utils.make_data_list", flags, writes=lists)


def _changed_list(random: Random, content: dict[str, Any]) -> tuple[str, bytes, bool]:
    """A changed data list: what was changed, its text, and whether that doesn't matter."""
    way = random.random()
    if way < 0.6:
        what = "; ".join(nested.change(random, content, _VALUES) for _ in range(random.choice((1, 1, 1, 2, 3))))
        return what, json.dumps(content, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass"), False
    text = json.dumps(content, indent=random.choice((None, 1)))
    if way < 0.75:
        what, data = with_bytes_changed(random, text.encode())
        return f"text: {what}", data, False
    if way < 0.85:
        encoding = random.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7"))
        return f"encoded as {encoding}", text.encode(encoding), encoding == "utf-8-sig"
    odd = random.choice((
        "[" * DEEP, '{"training": ' * DEEP, "[" * DEEP + "]" * DEEP, "", "null", "[]", "3", '"text"', "NaN", "{}",
        text + text, text.replace("0", "1e999"), text.replace("scan", "\\ud800"), text.replace("scan", "\\u0000"),
        text + "\0" * 1000,
        '{"training": [], "training": 3}', "9" * 10_000, text.replace('"test"', '"training"'), "// a comment\n" + text,
        '{"training": ' + "9" * 10_000 + "}", text.replace("{", '{"a": ' + "[" * DEEP + "]" * DEEP + ",", 1),
    ))  # fmt: skip
    return f"text: {odd[:40]!r} of {len(odd)} characters", odd.encode("utf-8", "surrogatepass"), False


_VALUES: tuple[Any, ...] = (
    *nested.PLAIN, "pipe", "pipe.nii.gz", "loop.nii.gz", "imagesTr", "labelsTr", "imagesTr/scan0.nii.gz", "../victim",
    "../victim/voxels.raw", "../victim/keep", "imagesTr/nothing.nii.gz", "\ud800", "imagesTr/scan0.nii.gz\0",
    ["imagesTr/scan0.nii.gz", "imagesTr/scan1.nii.gz"], ["imagesTr", "imagesTr"], {"image": "pipe", "label": "pipe"},
    {"spleen": "0"}, {"a": 0, "b": 0}, {"0": "x", "1": "x", "2": "x"},
    {"0": "a\nb", "1": "=1+1", "2": "../../victim/made"}, {"background": 0, "/etc/x": 1, "..": 2},
    {"0": "a", "1": "A" * 300, "2": "\0"}, {"0": "a", "1": ".", "2": ""},
    {"1": "left/organ", "2": "left_organ"}, [f"label {value}" for value in range(100_000)],
)  # fmt: skip


def _hostile_volume(random: Random, data: Path, victim: Path) -> str:
    """Put a changed scan in the place of an image or a label."""
    maker = random.choice((nifti.write, nifti.write, text_headers.write_nrrd, text_headers.write_meta_image))
    mutant = maker(random, victim)
    folder = data / random.choice(("imagesTr", "labelsTr", "labelsTr"))
    old = folder / "scan1.nii.gz"
    old.unlink(missing_ok=True)
    names = {name: name.replace("scan.", "scan1.") for name in mutant.files}
    files = {names[name]: content for name, content in mutant.files.items() if not (folder / names[name]).exists()}
    Mutant(mutant.what, files).write(folder)
    return f"{folder.name}/scan1 is {mutant.what}"


def _odd_entry(random: Random, data: Path, victim: Path) -> str:
    """Put something else between the scans, or in the place of one."""
    folder = data / random.choice(("imagesTr", "labelsTr"))
    name = random.choice(
        ("scan1.nii.gz", "scan9.nii.gz", "pipe", "scan1.mha", "SCAN1.NII.GZ", "a\nb.nii.gz", "=1+1.nii.gz")
    )
    path = folder / name
    path.unlink(missing_ok=True)
    kind = random.choice(
        ("a pipe", "a link to itself", "a folder", "an empty file", "text", "zeros without end", "a list")
    )
    match kind:
        case "a pipe":
            Mutant("", {name: Pipe()}).write(folder)
        case "a link to itself":
            path.symlink_to(name)
        case "zeros without end":
            path.symlink_to("/dev/zero")
        case "a folder":
            path.mkdir()
        case "a list":
            (data / "dataset_1.json").write_text("mine")
        case _:
            path.write_bytes(b"" if kind == "an empty file" else b"hello")
    return f"{folder.name}/{name!r} is {kind}"


def _odd_name(random: Random, data: Path, victim: Path) -> str:
    """Give an image and its label an odd name."""
    names = (
        b"m\xff",
        b"a\nb",
        b"a" * 240,
        b"\x1b[31m",
        b"%s%n",
        b"-rf",
        b"=1+1",
        "日本".encode(),
        b" ",
        b"..",
        b"scan0",
        b"",
    )
    name = random.choice(names)
    for folder in ("imagesTr", "labelsTr"):
        scan = data / folder / "scan1.nii.gz"
        if scan.exists():
            scan.rename(os.fsdecode(bytes(data / folder) + b"/" + name + b".nii.gz"))
    return f"a scan called {name!r}"


def _links_planted(random: Random, data: Path, victim: Path) -> str:
    """Put links where the lists will be written."""
    name = random.choice((LIST, f"{LIST}.part", "dataset_1.json.part", "dataset_1.json", ".lock"))
    (data / name).unlink(missing_ok=True)
    (data / name).symlink_to(victim / random.choice(("voxels.raw", "made", "keep")))
    return f"{name} is a link"


_ODD_FILES: tuple[Callable[[Random, Path, Path], str], ...] = (
    _hostile_volume, _hostile_volume, _hostile_volume, _odd_entry, _odd_entry, _odd_name, _links_planted,
)  # fmt: skip
