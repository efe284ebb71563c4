"""Score a folder of masks against a folder of labels: ``python -m utils.evaluate PREDICTIONS LABELS``.

Both may come from any program. Masks and labels belong together if their files have the same name, or else the same
numbers in their names. It writes the tables and the report that ``test.py`` writes.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import utils
from utils.config.messages import name_flags
from utils.config.parser import Parser, file_path, names, positive, whole
from utils.data.data_list import DataList, LabelMeaning, labels_in, numbered_labels, read_data_list, read_labels
from utils.data.folders import DESCRIPTION
from utils.evaluation.mask_folders import (
    PICTURES,
    Classes,
    MaskPair,
    find_pairs,
    picture_file,
    score_pair,
    values_in,
    with_annotation,
)
from utils.evaluation.measurements import save_measurements, scores_of
from utils.evaluation.metrics import TOLERANCE_MM
from utils.evaluation.report import write_report
from utils.evaluation.tables import save_scores, scan_table
from utils.evaluation.view import PAGE, view_file
from utils.io.scan import without_endings
from utils.system.errors import InputError, WriteError, first_line, one_line_errors
from utils.system.files import make_folder, writable_folder
from utils.system.text import SHOWN, few_names, one_line

OUTPUT = "evaluation"


def main(args: argparse.Namespace, command: str) -> None:
    """Score all pairs, write tables and report, and print the table."""
    predictions, labels = Path(args.predictions), Path(args.labels)
    images = None if args.images is None else Path(args.images)
    folder = predictions / OUTPUT if args.output_dir is None else Path(args.output_dir)
    pairs, faults, notes = find_pairs(predictions, labels, images)
    for note in notes:
        print(f"note: {note}")
    listed = None if args.json_list is None else read_data_list(str(labels), args.json_list, args.fold)
    if listed is not None:
        not_annotated = annotation_by_name(listed)
        unlisted = [pair.label.name for pair in pairs if without_endings(pair.label.name) not in not_annotated]
        if unlisted and any(not_annotated.values()):
            print(f"note: {listed.path} lists no label {few_names(unlisted)}; all structures count as annotated there")
        pairs = list(with_annotation(pairs, not_annotated))
    classes = find_classes(args, listed, pairs)
    writable_folder(folder, "`output_dir`")
    make_folder(folder / PICTURES)

    records: list[dict[str, Any]] = []
    with ThreadPoolExecutor(max(1, args.workers)) as pool:
        outcomes = pool.map(partial(_scored, classes=classes, nsd_mm=args.nsd_mm, folder=folder), pairs)
        for outcome in tqdm(outcomes, total=len(pairs), desc="scoring", leave=False, disable=None):
            if isinstance(outcome, str):
                faults.append(outcome)
            else:
                records.append(outcome)
                for remark in outcome["remarks"]:
                    tqdm.write(f"note: {one_line(remark)}")
    if records:
        write_results(folder, records, classes, command, args.nsd_mm)
    if faults:
        raise InputError(
            f"{len(faults)} failed and {len(records)} were scored; mend these and launch the same command again:\n"
            "       " + "\n       ".join(faults)
        )


def annotation_by_name(listed: DataList) -> dict[str, tuple[int, ...]]:
    """The labels that nobody drew in each scan of a list, by the name of its label's file without the ending.

    Raises:
        InputError: if two label files of one name differ in that.
    """
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for scan in (*listed.training, *listed.validation, *listed.test):
        if scan.label is None:
            continue
        other, not_annotated = found.setdefault(without_endings(scan.label.name), (scan.label, scan.not_annotated))
        if set(not_annotated) != set(scan.not_annotated):
            raise InputError(
                f'{listed.path}: {other} and {scan.label} have one file name and differ in "not_annotated", and labels '
                "are found by their file names. Give a list without one of them, or rename it."
            )
    return {name: not_annotated for name, (_, not_annotated) in found.items()}


def find_classes(args: argparse.Namespace, listed: DataList | None, pairs: Sequence[MaskPair]) -> Classes:
    """Names of values and regions: those of the flags, of a ``dataset.json`` beside the labels, or else numbers.

    Raises:
        InputError: if the list has no names.
    """
    if args.label_names is not None:
        return args.label_names
    if listed is not None and listed.labels is not None:
        return Classes(listed.labels, listed.ignore, listed.regions, listed.also_called)
    for path in (Path(args.labels) / DESCRIPTION, Path(args.labels) / ".." / DESCRIPTION):
        found = labels_in(path) if path.is_file() else LabelMeaning()
        if found.labels is not None:
            return Classes(found.labels, found.ignore, found.regions, found.also_called)
    predicted, drawn = values_in(pair.prediction for pair in pairs), values_in(pair.label for pair in pairs)
    if predicted and drawn and not predicted & drawn:
        values = (", ".join(map(str, sorted(each)[:SHOWN])) for each in (predicted, drawn))
        print("note: predictions have the values {} and labels {}; renumber one of them, or Dice is 0".format(*values))
    every = predicted | drawn or {1}
    return Classes(numbered_labels(max(every) + 1), scored=frozenset(every))


def write_results(folder: Path, records: list[dict[str, Any]], classes: Classes, command: str, nsd_mm: float) -> None:
    """Write tables and report, and print the table.

    Raises:
        WriteError: if something can't be written.
    """
    facts = {
        "command": command,
        "made": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "version": f"UNETR {utils.__version__}",
        "tolerance of the surface Dice": f"{nsd_mm:g} mm",
    }
    scores = scores_of(records, tuple(classes.structures), "dice")
    assert scores is not None  # all are labelled
    save_scores(folder, scores, {**facts, "grid": "scan"})
    save_measurements(folder, records, facts)
    pictures = {record["scan"]: picture_file(folder, record["scan"]) for record in records}
    views = {record["scan"]: view_file(folder, record["scan"]) for record in records}
    write_report(folder / "report.html", records, pictures, facts, views)
    print(f"Dice on the scan's own grid\n{scan_table(scores)}")
    print(f"{folder} holds measurements.csv, measurements.json, scores.csv, scores.json, report.html and {PAGE}")


def _scored(pair: MaskPair, classes: Classes, nsd_mm: float, folder: Path) -> dict[str, Any] | str:
    """The record of a pair, or what is wrong with it."""
    try:
        return score_pair(pair, classes, nsd_mm, folder)
    except WriteError:
        raise
    except InputError as error:
        return str(error)
    except Exception as error:  # whatever damaged bytes break in a library; the others are scored all the same
        return f"{pair.prediction}: can't be scored ({type(error).__name__}: {first_line(error)})."


def _classes(text: str) -> Classes:
    """Names with commas between them, of which one may be ``ignore``."""
    try:
        found, ignore = read_labels(list(names(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text!r}") from error
    assert found is not None  # at least one name
    return Classes(found, ignore)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m utils.evaluate",
        description="Score masks of any program against labels, with tables and report.",
    )
    parser.add_argument("predictions", type=file_path, help="folder of the masks")
    parser.add_argument("labels", type=file_path, help="folder of the labels")
    parser.add_argument("--images", type=file_path, help="folder of the scans, for pictures and intensities")
    parser.add_argument(
        "--output_dir", type=file_path, help=f"folder for tables and report (default: {OUTPUT} in that of the masks)"
    )
    parser.add_argument("--label_names", type=_classes, help="names of the values 0, 1, …, with commas between: "
                        "background,liver,… (default: those in dataset.json)")  # fmt: skip
    parser.add_argument("--json_list", type=file_path, help="data list that names the labels, and what isn't annotated")
    parser.add_argument("--fold", type=whole, default=0, help="of the data list, if its entries name folds")
    parser.add_argument("--nsd_mm", type=positive, default=TOLERANCE_MM, metavar="MM",
                        help="tolerance of the surface Dice")  # fmt: skip
    parser.add_argument("--workers", type=whole, default=4, help="threads")
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can mend ends the program with one line."""
    with one_line_errors(name_flags):
        args = _parse(argv)
        main(args, shlex.join(["python", "-m", "utils.evaluate", *(sys.argv[1:] if argv is None else argv)]))


if __name__ == "__main__":
    run()
