"""Interruptions of ``test.py``, ``utils.crossval`` and ``utils.export``, launched again with the same command."""

import gzip
import hashlib
import json
import os
import re
import signal
import time
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.interrupted_training import differences as training_differences
from benchmarks.interruptions import TINY, FaultInjector, Launch, Outcome, unequal
from utils.checkpoints.description import METADATA
from utils.checkpoints.read import read_checkpoint
from utils.export import ENDINGS
from utils.system.files import UNFINISHED, write_json

EPOCHS = 8  # of a cross-validation
OLD = b"an older file"  # in the way of an export
SMALLEST = 2**12  # bytes of a file that a full disk refuses; with less there would be no room for the messages
STEPS_TO_STOP = 2  # epochs, or scans, in which a program that is told to stop does so
NOT_WRITTEN = "can't be written"  # in a program's message
# what may differ between two runs: times, the command line, the hash of a gzip file, which holds a time
MAY_DIFFER = ("seconds", "seconds of training steps", "made", "command", "mask", "results")
FACTS_OF_A_PAGE = re.compile(r"<dt>(command|made)</dt><dd>.*?</dd>")


class CommandInjector(FaultInjector):
    """Interrupts a command. An interruption is halfway if a file was half-written at that moment."""

    interruptions_of_a_run = 5

    def wait_for_a_moment(self, launch: Launch, at_work: bool) -> None:
        """Wait for a random moment of a launch, which is halfway in one of two cases unless it has to be at work."""
        if at_work or self.random.random() < 0.5:
            super().wait_for_a_moment(launch, at_work)
            return
        time.sleep(self.random.uniform(0, 0.7 * self.seconds[self.reference(launch.name)]))
        self.wait_until(lambda: self.is_writing(launch), launch.process.is_alive, launch.name, pause=0.0002)

    def examine(self, launch: Launch, outcome: Outcome) -> None:
        """Check that each file is whole."""
        outcome.halfway += launch.writing
        faults = self.faults(launch.name)
        outcome.lost += len(faults)
        outcome.problems += [f"{launch.name}: {fault}" for fault in faults]

    @abstractmethod
    def faults(self, name: str) -> list[str]:
        """The files that are not whole, and yet called what whole ones are called."""

    @abstractmethod
    def sizes(self, name: str) -> list[int]:
        """Sizes of files of which each can be the first that a disk is too full for."""

    def full_disks(self, times: int) -> Outcome:
        """Limit the file size ``times`` times, half of them after a launch without a limit."""

        def interrupt(name: str, outcome: Outcome) -> bool:
            progress = self.progress(name)
            if self.random.random() < 0.5 and self.interrupt(name, signal.SIGTERM).status == 0:
                return True
            launch = self.launch(name, file_size=self.random.choice(self.sizes(self.reference(name))) - 1)
            self.finish(launch)
            self.find_losses(launch, outcome)
            if launch.status == 0:
                return True
            outcome.interruptions += 1
            outcome.at_work += self.progress(name) > progress
            launch.writing = True
            if launch.status != 1 or NOT_WRITTEN not in launch.output():
                outcome.problems.append(f"{name} ended with status {launch.status} on a full disk:\n{self.log(name)}")
            self.examine(launch, outcome)
            return False

        return self.repeat("full-disk", times, interrupt)

    def differences(self, name: str) -> list[str]:
        """The files that differ, are missing or are too many. Each must be whole."""
        left = [f"{path} is left" for path in self.unfinished(name)]
        return left + self.faults(name) + self.unlike(self.reference(name), name)

    @abstractmethod
    def unlike(self, expected: str, name: str) -> list[str]:
        """The results of a run that differ from those of another."""


class SegmentationInjector(CommandInjector):
    """Interrupts ``test.py``, which segments all scans of a data list.

    Args:
        data: the folder of the phantoms, written by :func:`utils.phantom.write_phantoms`.
        weights: a checkpoint.
    """

    program = "test.py"

    def __init__(self, folder: Path, data: Path, weights: Path, seed: int = 0) -> None:
        self.data, self.weights, self.list = data, weights, folder / "scans.json"
        folder.mkdir(exist_ok=True)
        content = json.loads((data / "dataset_0.json").read_text())
        scans = [entry for part in ("training", "validation", "test") for entry in content.get(part, [])]
        write_json(self.list, {"labels": content["labels"], "validation": scans})
        super().__init__(folder, seed)

    def flags(self, name: str) -> list[str]:
        """The flags, with which the scans are read one or two at a time."""
        return [
            *(f"--pretrained_dir={self.weights.parent}", f"--pretrained_model_name={self.weights.name}"),
            *(f"--data_dir={self.data}", f"--json_list={self.list}", "--output_dir=out"),
            *("--one_file_per_organ", "--save_probabilities", "--device=cpu", "--noamp"),
            f"--workers={self.random.choice((0, 1))}",
        ]

    def results(self, name: str) -> Path:
        """The output folder."""
        return self.folder / name / "out"

    def progress(self, name: str) -> int:
        """The number of finished scans."""
        return len(self.finished(name))

    def finished(self, name: str) -> dict[str, Any]:
        """The finished scans, and when they were finished."""
        return finished_scans(self.results(name))

    def faults(self, name: str) -> list[str]:
        """What is wrong with the output folder."""
        return faulty_results(self.results(self.reference(name)), self.results(name))

    def unlike(self, expected: str, name: str) -> list[str]:
        """What differs in the output folder."""
        return unlike_results(self.results(expected), self.results(name))

    def sizes(self, name: str) -> list[int]:
        """The sizes of the results."""
        return sizes_below(self.results(name))


class ExportInjector(CommandInjector):
    """Interrupts ``utils.export``. It may find an older file in its way.

    Args:
        weights: a checkpoint.
        formats: they take turns.
    """

    program = "utils/export.py"
    interruptions_of_a_run = 3

    def __init__(self, folder: Path, weights: Path, seed: int = 0, formats: tuple[str, ...] = tuple(ENDINGS)) -> None:
        self.weights, self.formats = weights, formats
        self.references = tuple(f"uninterrupted{number}" for number in range(len(formats)))
        super().__init__(folder, seed)

    def reference(self, name: str) -> str:
        """The uninterrupted run with the same format."""
        return self.references[_number(name) % len(self.formats)]

    def flags(self, name: str) -> list[str]:
        """The flags; before its first launch a run with an odd number gets an older file."""
        path, format_name = self._target(name), self.formats[_number(name) % len(self.formats)]
        if _number(name) % 2 and not path.exists():
            path.write_bytes(OLD)
        return [str(self.weights), f"--format={format_name}", f"--output={path.name}"]

    def _target(self, name: str) -> Path:
        return self.results(name) / "exported"

    def results(self, name: str) -> Path:
        """The folder of the file."""
        return self.folder / name

    def statuses(self, number: int) -> set[int]:
        """A signal kills it at once: it has nothing to save."""
        return {-number}

    def progress(self, name: str) -> int:
        """The moment at which the writing of a file began, or a file was complete."""
        return max((path.stat().st_ctime_ns for path in self.results(name).glob("exported*")), default=0)

    def finished(self, name: str) -> dict[str, Any]:
        """Nothing; each launch writes the file."""
        return {}

    def faults(self, name: str) -> list[str]:
        """Whether there is a file that is neither the old one nor the whole new one."""
        path = self._target(name)
        if not path.exists():
            return [f"{path} is gone"] if _number(name) % 2 else []
        return [] if path.read_bytes() == OLD else self.unlike(self.reference(name), name)

    def unlike(self, expected: str, name: str) -> list[str]:
        """What differs in the file's content."""
        format_name = self.formats[_number(name) % len(self.formats)]
        contents = []
        for path in (self._target(expected), self._target(name)):
            try:
                contents.append(EXPORTED[format_name](path))
            except Exception as error:
                return [f"{path} can't be read: {error}"]
        return [f"{self._target(name)}: {place}" for place in unequal(*contents)]

    def sizes(self, name: str) -> list[int]:
        """Sizes between 1 % and all of the file."""
        size = self._target(name).stat().st_size
        return [size * percent // 100 for percent in range(1, 101)]


class CrossValidationInjector(CommandInjector):
    """Interrupts ``utils.crossval``, the program that it runs at that moment, or both.

    Args:
        data: the folder of the phantoms, written by :func:`utils.phantom.write_phantoms`.
        folds: which of the two folds are trained and scored.
    """

    program = "utils/crossval.py"

    def __init__(self, folder: Path, data: Path, seed: int = 0, folds: tuple[int, ...] = (0, 1)) -> None:
        self.data, self.list, self.folds = data, folder / "folds.json", folds
        self.orphaned = 0  # epochs and scans that the last launch's programs did after its end
        folder.mkdir(exist_ok=True)
        content = json.loads((data / "dataset_0.json").read_text())
        scans = [{**entry, "fold": number % 2} for number, entry in enumerate(content["training"])]
        write_json(self.list, {"labels": content["labels"], "training": scans})
        super().__init__(folder, seed)

    def flags(self, name: str) -> list[str]:
        """The flags of ``main.py`` for a few epochs."""
        return [
            *TINY, f"--data_dir={self.data}", f"--json_list={self.list}", "--logdir=all", "--workers=0",
            f"--max_epochs={EPOCHS}", "--val_every=4", "--save_every=2", "--optim_lr=1e-2", "--warmup_epochs=1",
            "--folds", *map(str, self.folds),
        ]  # fmt: skip

    def results(self, name: str) -> Path:
        """The folder of all folds."""
        return self.folder / name / "runs" / "all"

    def progress(self, name: str) -> int:
        """The number of trained epochs and segmented scans."""
        return self.log(name).count(": loss ") + len(finished_scans(self.results(name) / "out_of_fold"))

    def finished(self, name: str) -> dict[str, Any]:
        """The finished scans, and the folds that are trained to the end; and when they were written."""
        trained = {}
        for path in sorted(self.results(name).glob("fold*/model_final.pt")):
            changed = path.stat().st_mtime_ns
            if read_checkpoint(path)["epoch"] == EPOCHS:
                trained[path.parent.name] = changed
        return {**finished_scans(self.results(name) / "out_of_fold"), **trained}

    def statuses(self, number: int) -> set[int]:
        """If only the program that it runs gets the signal, its own status tells of that."""
        return {*super().statuses(number), 128 + number}

    def send(self, launch: Launch, number: int) -> None:
        """Send a signal to the command, to the program that it runs, or to both; wait for the end of both."""
        children = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
        receiver = self.random.choice(("command", "program", "both"))
        if receiver == "program" and children:
            os.kill(int(children[0]), number)
        elif receiver == "both":
            os.killpg(launch.pid, number)
        else:
            os.kill(launch.pid, number)
        self.finish(launch)
        done = self.progress(launch.name)
        self.wait_until(lambda: not _processes_of(launch.pid), lambda: True, launch.name)
        self.orphaned = self.progress(launch.name) - done

    def examine(self, launch: Launch, outcome: Outcome) -> None:
        """Check that each file is whole, and that what the command had started ended with it."""
        super().examine(launch, outcome)
        if self.orphaned > STEPS_TO_STOP:
            outcome.problems.append(f"{launch.name}: what it had started went on after its end:\n{launch.output()}")

    def faults(self, name: str) -> list[str]:
        """What is wrong with the folder of masks, the checkpoints and the tables."""
        folders = self.results(self.reference(name)), self.results(name)
        problems = faulty_results(*(folder / "out_of_fold" for folder in folders))
        for path in folders[1].glob("fold*/model*.pt"):
            try:
                read_checkpoint(path)
            except ValueError as error:
                problems.append(str(error))
        return problems + [fault for path in folders[1].glob("*.*") if (fault := faulty_text(path)) is not None]

    def unlike(self, expected: str, name: str) -> list[str]:
        """What differs in the runs, the folder of masks and the tables."""
        folders = self.results(expected), self.results(name)
        problems = unlike_results(*(folder / "out_of_fold" for folder in folders))
        for fold in self.folds:
            runs = [folder / f"fold{fold}" for folder in folders]
            problems += [f"{runs[1]}: {what}" for what in training_differences(*runs)]
        tables = [folder / "crossval.csv" for folder in folders]
        facts = [comparable(json.loads((folder / "crossval.json").read_text())) for folder in folders]
        problems += ["crossval.csv"] * (tables[0].read_bytes() != tables[1].read_bytes())
        return problems + [f"crossval.json{place}" for place in unequal(*facts)]

    def sizes(self, name: str) -> list[int]:
        """The sizes of checkpoints, masks, pictures and tables."""
        return sizes_below(self.results(name))


def finished_scans(folder: Path) -> dict[str, Any]:
    """The scans that an output folder's records call finished, and when these were written."""
    finished = {}
    for path in (folder / "records").glob("*.json"):
        changed = path.stat().st_mtime_ns
        if _is_finished(path):
            finished[path.stem] = changed
    return finished


def _is_finished(record: Path) -> bool:
    try:
        return "organs" in json.loads(record.read_text())
    except ValueError:
        return False


def faulty_results(expected: Path, found: Path) -> list[str]:
    """What is wrong in an output folder of ``test.py`` at any moment: files that aren't whole, records that lie."""
    problems = []
    for path in found.rglob("*"):
        name = path.relative_to(found)
        if path.is_dir() or path.name.endswith(UNFINISHED):
            continue
        if not (expected / name).exists() and path.suffix != ".log":
            problems.append(f"{path}: nobody asked for it")
        elif path.name.endswith(".nii.gz"):
            try:
                whole = gzip.decompress(path.read_bytes()) == gzip.decompress((expected / name).read_bytes())
            except (EOFError, OSError, zlib.error):
                whole = False
            problems += [] if whole else [f"{path}: isn't the whole mask"]
        elif path.suffix == ".png":
            problems += [f"{path}: differs"] * (path.read_bytes() != (expected / name).read_bytes())
        elif (fault := faulty_text(path)) is not None:
            problems.append(fault)
    for scan in finished_scans(found):
        paths = [*expected.glob(f"{scan}*"), *expected.glob(f"{scan}/*"), *expected.glob(f"records/{scan}.*")]
        missing = [path.name for path in paths if not (found / path.relative_to(expected)).exists()]
        problems += [f"{found}: the record calls {scan} finished, but {name} is missing" for name in missing]
        record = json.loads((found / "records" / f"{scan}.json").read_text())
        if record["mask"] != hashlib.sha256((found / f"{scan}.nii.gz").read_bytes()).hexdigest()[: len(record["mask"])]:
            problems.append(f"{found}: the record of {scan} is that of another mask")
    return problems


def sizes_below(folder: Path) -> list[int]:
    """The different sizes of the files in a folder, from :data:`SMALLEST` on."""
    sizes = {path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sorted(size for size in sizes if size > SMALLEST)


def faulty_text(path: Path) -> str | None:
    """What shows that a text is not whole, by its end."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text())
        except ValueError as error:
            return f"{path}: {error}"
    end = {".csv": "\n", ".html": "</html>", ".json": "}\n", ".txt": "\n", ".ctbl": "\n"}.get(path.suffix, "")
    return None if path.read_text().endswith(end) else f"{path}: is cut off"


def unlike_results(expected: Path, found: Path) -> list[str]:
    """The results in two output folders of ``test.py`` that differ, apart from times; the masks are compared before."""
    problems = []
    for path in expected.rglob("*"):
        other = found / path.relative_to(expected)
        if path.is_file() and not other.exists():
            problems.append(f"{other} is missing")
        elif path.suffix == ".json":
            contents = [comparable(json.loads(each.read_text())) for each in (path, other)]
            problems += [f"{other}: {place}" for place in unequal(*contents)]
        elif path.suffix == ".html":
            pages = [FACTS_OF_A_PAGE.sub("", each.read_text()) for each in (path, other)]
            problems += [f"{other} differs"] * (pages[0] != pages[1])
        elif path.suffix in (".csv", ".txt", ".ctbl"):
            problems += [f"{other} differs"] * (path.read_bytes() != other.read_bytes())
    return problems


def comparable(content: Any) -> Any:
    """A JSON text's content without what may differ, and with weights by their path alone."""
    if isinstance(content, dict):
        kept = {key: comparable(value) for key, value in content.items() if key not in MAY_DIFFER}
        if isinstance(content.get("weights"), list):
            kept["weights"] = [path for path, *_ in content["weights"]]
        return kept
    return [comparable(value) for value in content] if isinstance(content, list) else content


def _number(name: str) -> int:
    match = re.search(r"\d+$", name)
    assert match is not None, "names of runs end with their number"
    return int(match[0])


def _processes_of(group: int) -> list[int]:
    """The processes of a process group that haven't ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = path.read_text().rsplit(") ", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        if int(number) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def _torchscript(path: Path) -> Any:
    metadata = {METADATA: ""}
    network = torch.jit.load(path, _extra_files=metadata)
    window = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return {"logits": network(window), "metadata": json.loads(metadata[METADATA])}


def _state_dict(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(METADATA)]
        metadata = json.loads(archive.read(name))
    return {"weights": dict(torch.load(path, weights_only=True)), "metadata": metadata}


# what has to be equal in two files of each format
EXPORTED: dict[str, Callable[[Path], Any]] = {
    "torchscript": _torchscript,
    "onnx": lambda path: path.read_bytes(),
    "state_dict": _state_dict,
}
