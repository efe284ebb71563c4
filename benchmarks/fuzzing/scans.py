"""Hostile scans, many in a folder with sound ones among them, for one command."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.fuzzing import dicom, nifti, text_headers
from benchmarks.fuzzing.kind import Input, Kind, Mask, Workplace, read_mask, same_mask, write_series
from benchmarks.fuzzing.mutant import Maker, Mutant
from benchmarks.fuzzing.sandbox import Command, Ended, Sandbox
from benchmarks.fuzzing.verdicts import Verdict, crash, refusal, unforeseen

SOUND = "sound"
NUMBER = re.compile(r"inputs/(\d{3})_odd\b")


@dataclass(frozen=True)
class OddScan(Input):
    """A scan that was changed.

    Attributes:
        mutant: its files.
    """

    mutant: Mutant = field(kw_only=True)


class Scans(Kind):
    """Scans of one format.

    Args:
        name: of the table's row.
        share: how many there are, as a part of the sum of all kinds' shares.
        maker: makes one.
    """

    batch = 40

    def __init__(self, workplace: Workplace, name: str, share: int, maker: Maker) -> None:
        super().__init__(workplace)
        self.name, self.share, self.maker = name, share, maker

    def prepare(self, randoms: Sequence[Random], sandbox: Sandbox) -> tuple[list[Input], Command]:
        """Write scans into the folder of inputs, and sound ones before, among and behind them."""
        folder = sandbox.folder / "inputs"
        scans: list[Input] = []
        for number, random in enumerate(randoms):
            mutant = self.maker(random, sandbox.victim)
            mutant.write(folder / f"{number:03d}_odd")
            scans.append(OddScan(mutant.what, mutant.harmless, mutant=mutant))
        for number in {0, len(scans)}:
            (folder / f"{number:03d}_{SOUND}").mkdir()
            (folder / f"{number:03d}_{SOUND}" / "scan.nii.gz").write_bytes(nifti.sound_file())
        write_series(folder / f"{len(scans) // 2:03d}_{SOUND}_series")
        return scans, self.workplace.test("inputs")

    def judge(self, inputs: Sequence[Input], ended: Ended, sandbox: Sandbox) -> list[Verdict]:
        """What came of each scan. A fault of the whole, such as a sound scan without its mask, is one of each."""
        if (verdict := crash(ended)) is not None:
            return [verdict] * len(inputs)
        masks = masks_by_folder(sandbox)
        for folder in (sandbox.folder / "inputs").iterdir():
            if SOUND in folder.name and not _is_right(masks[folder.name], self.workplace.mask):
                return [Verdict.WRONG] * len(inputs)
        said = _said(ended)
        odd = {_number(entry) for entry in unforeseen(sandbox.out / "errors.log")}
        return [
            self._verdict(scan, masks[f"{number:03d}_odd"], said[number], number in odd)
            for number, scan in enumerate(inputs)
        ]

    def _verdict(self, scan: Input, masks: Sequence[Mask | None], said: str, is_odd: bool) -> Verdict:
        assert isinstance(scan, OddScan)
        if not masks:
            if not said:
                return Verdict.LEFT_OUT
            return Verdict.UNFORESEEN if is_odd else refusal(said)
        if scan.mutant.outside or any(mask is None for mask in masks):
            return Verdict.WRONG
        if scan.harmless and not _is_right(masks, self.workplace.mask):
            return Verdict.WRONG
        slices = scan.mutant.slices
        fewer = slices is not None and not any(mask is not None and slices in mask[0].shape for mask in masks)
        return Verdict.WRONG if fewer and not said else Verdict.RIGHT


def scan_kinds(workplace: Workplace) -> list[Kind]:
    """All kinds of scans."""
    return [
        Scans(workplace, "NIfTI", 24, nifti.write),
        Scans(workplace, "NRRD", 16, text_headers.write_nrrd),
        Scans(workplace, "MetaImage", 18, text_headers.write_meta_image),
        Scans(workplace, "DICOM", 18, dicom.write),
    ]


def masks_by_folder(sandbox: Sandbox) -> dict[str, list[Mask | None]]:
    """The masks of finished scans by the name of the scan's folder, as the records tell; None for one that is none."""
    masks: dict[str, list[Mask | None]] = defaultdict(list)
    top = sandbox.folder / "inputs"
    for path in sorted((sandbox.out / "records").glob("*.json")):
        try:
            source = json.loads(path.read_text(encoding="utf-8"))["source"]
            folder = Path(source).relative_to(top.resolve()).parts[0]
        except (ValueError, LookupError, TypeError, OSError):  # of an unfinished scan, or no record of ours
            continue
        masks[folder].append(read_mask(sandbox.out / f"{path.stem}.nii.gz"))
    return masks


def _is_right(masks: Sequence[Mask | None], expected: Mask | None) -> bool:
    return len(masks) == 1 and same_mask(masks[0], expected)


def _number(text: str) -> int | None:
    found = NUMBER.search(text)
    return None if found is None else int(found[1])


def _said(ended: Ended) -> dict[int | None, str]:
    """The lines that name each scan."""
    said: dict[int | None, str] = defaultdict(str)
    for line in [*ended.output.splitlines(), *ended.errors.splitlines()]:
        for number in {int(found) for found in NUMBER.findall(line)}:
            said[number] = said[number] or line  # a line comes twice: at once, and at the end
    return said
