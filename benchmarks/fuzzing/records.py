"""Output folders of earlier commands whose records were changed, and in which links were planted."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.fuzzing import nested, nifti
from benchmarks.fuzzing.kind import Input, Single, Workplace, read_mask, same_mask
from benchmarks.fuzzing.mutant import with_bytes_changed
from benchmarks.fuzzing.sandbox import Command, Ended, Sandbox
from benchmarks.fuzzing.verdicts import Verdict, crash, refusal

MORE = ("--one_file_per_organ", "--save_probabilities", "--overwrite")
BEGUN = (
    *("../victim", "../victim/voxels.raw", "../victim/keep/notes.txt", "../inputs/a.nii.gz", "a.nii.gz", "records"),
    *(".", "..", "", "/", "a", "a/../../victim/voxels.raw", "records/b.json", "b.nii.gz", "A" * 5000, "a\0b"),
    *("link/voxels.raw", "mine.txt", "report.html"),
)


@dataclass(frozen=True)
class OddFolder(Input):
    """An output folder that was changed.

    Attributes:
        whole: whether a command may refuse all of it: what every scan needs was changed.
    """

    whole: bool = False


class Records(Single):
    """Output folders in which scan ``a`` was finished before, for ``test.py`` with another one, ``b``, beside it."""

    name, share = "records", 7

    def __init__(self, workplace: Workplace) -> None:
        super().__init__(workplace)
        before = Sandbox(Path(tempfile.mkdtemp(prefix="before", dir=workplace.folder)) / "sandbox")
        self.before = before.folder
        for name in "ab":
            (before.folder / "inputs" / f"{name}.nii.gz").write_bytes(nifti.sound_file())
        for name, more in (("plain", ()), ("more", MORE)):
            ended = before.run(workplace.test("inputs/a.nii.gz", *more))
            if ended.status != 0:
                raise RuntimeError(ended.errors)
            (before.out / "mine.txt").write_text("not from test.py")
            shutil.move(before.out, before.folder / name)

    def make(self, random: Random, sandbox: Sandbox) -> tuple[Input, Command]:
        """Write an output folder, and say what goes on with it."""
        for path in (self.before / "inputs").iterdir():
            shutil.copy2(path, sandbox.folder / "inputs")
        shutil.copytree(self.before / random.choice(("plain", "more")), sandbox.out)
        record = sandbox.out / "records" / "a.json"
        record.write_text(record.read_text().replace(str(self.before), str(sandbox.folder)))
        whole = False
        if random.random() < 0.3:
            what, whole = _planted(random, sandbox)
        else:
            what = _changed_record(random, record)
        if random.random() < 0.3:
            (sandbox.out / "a.nii.gz").unlink(missing_ok=True)
            what += ", and no mask"
        more = [flag for flag in MORE if random.random() < 0.3]
        return OddFolder(what, whole=whole), self.workplace.test("inputs", *more)

    def judge(self, inputs: Sequence[Input], ended: Ended, sandbox: Sandbox) -> list[Verdict]:
        """Whether the scan beside has its mask, and that of the other one is right where it is there."""
        (given,) = inputs
        assert isinstance(given, OddFolder)
        if (verdict := crash(ended)) is not None:
            return [verdict]
        beside = read_mask(sandbox.out / "b.nii.gz")
        if not same_mask(beside, self.workplace.mask) and not (given.whole and ended.status != 0):
            return [Verdict.WRONG]
        if not (sandbox.out / "mine.txt").exists():
            return [Verdict.TOUCHED]  # no program may remove what it didn't make
        if ended.status != 0:
            return [refusal(ended.errors)]
        return [Verdict.RIGHT if same_mask(read_mask(sandbox.out / "a.nii.gz"), self.workplace.mask) else Verdict.WRONG]


def _changed_record(random: Random, path: Path) -> str:
    """Change a record. Returns how."""
    record = json.loads(path.read_text())
    way = random.random()
    if way < 0.35:
        names = [random.choice(BEGUN) for _ in range(random.choice((1, 1, 3)))]
        begun = random.choice((names, names, names, names[0], {names[0]: 1}, [names], [1, None], 3, [*names, 2.5]))
        path.write_text(json.dumps({"scan": random.choice(("a", "a", "../victim", 3, None)), "begun": begun}))
        return f"begun is {str(begun)[:60]}"
    if way < 0.45:
        record["organs"] = random.choice((
            ["../../victim/voxels", "x"], ["../victim", ".."], "abc", {"1": "x"}, [1, 2], [["a"]], None, ["a\0b"],
            ["A" * 5000], [],
        ))  # fmt: skip
        record["made_with"]["one_file_per_organ"] = True
        path.write_text(json.dumps(record))
        return f"organs are {str(record['organs'])[:60]}"
    if way < 0.8:
        what = "; ".join(nested.change(random, record) for _ in range(random.choice((1, 1, 2, 3))))
        path.write_text(json.dumps(record))
        return what
    if way < 0.9:
        what, data = with_bytes_changed(random, path.read_bytes())
        path.write_bytes(data)
        return f"text: {what}"
    text = random.choice(
        ("", "[]", "null", "3", "[" * 100_000, "{}", '{"begun": ' + "[" * 100_000, "\0" * 100, '"abc"', "NaN")
    )
    path.write_text(text)
    return f"the record is {text[:20]!r}, {len(text)} characters"


def _planted(random: Random, sandbox: Sandbox) -> tuple[str, bool]:
    """Plant a link, a folder or a pipe where results are written. Returns what, and whether no scan can do without."""
    everywhere = ("records", "records/.lock", "view")
    name = random.choice((
        *("report.html", "report.html.part", "measurements.csv", "measurements.csv.part", "measurements.json.part"),
        *("a.nii.gz", "a.nii.gz.part", "b.nii.gz", "b.nii.gz.part", "a", "b", "a_probabilities.nii.gz.part"),
        *("records/a.json", "records/a.json.part", "records/b.json", "records/b.json.part", "records/b.png"),
        *("records/a.png.part", "records/b.png.part", "scores.csv", "labels.txt", "errors.log", *everywhere),
        *("view.html", "view/a.scan.js", "view/b.scan.js.part"),
    ))  # fmt: skip
    path = sandbox.out / name
    if path.is_dir() and not path.is_symlink():
        shutil.move(path, sandbox.out / "moved")
    path.unlink(missing_ok=True)
    kind = random.choice(("link", "link", "link to nothing yet", "link to a folder", "folder", "pipe", "loop"))
    match kind:
        case "link":
            path.symlink_to(sandbox.victim / "voxels.raw")
        case "link to nothing yet":
            path.symlink_to(sandbox.victim / "made")
        case "link to a folder":
            path.symlink_to(sandbox.victim / "keep")
        case "folder":
            (path / "mine").mkdir(parents=True)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to(path.name)
    own = name.split("/")[-1].split(".")[0].split("_")[0] == "b"  # the scan beside can't be written there
    return f"{name} is a {kind}", name in everywhere or own
