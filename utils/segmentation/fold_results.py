"""What a cross-validation writes: tables over its folds, and into their networks what helps at test time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.checkpoints.description import Description
from utils.checkpoints.postprocessing import FromFolds
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.save import write_from_folds
from utils.distributed.process import Process
from utils.evaluation.measurements import scores_of
from utils.evaluation.metrics import FoldScores
from utils.evaluation.tables import fold_record, fold_table, save_fold_scores
from utils.segmentation.after_folds import ScannedFold, judge_folds
from utils.segmentation.pipeline import Outcome
from utils.segmentation.results import save_results
from utils.system.errors import InputError
from utils.system.files import file_state, write_json
from utils.system.text import one_line
from utils.training.run_folder import BEST, LATEST

TABLES = {"dice": "Dice", "nsd": "normalised surface Dice, tolerance {nsd_mm:g} mm", "hd95_mm": "HD95 in mm"}
ABSENT = (
    "an organ in neither label nor mask of a scan is left out of means and deviations; in one of them alone it has "
    "Dice 0 and NSD 0, and HD95, which is undefined then, is left out"
)


def write_fold_tables(folds: Sequence[ScannedFold], group: Path, facts: Mapping[str, Any], process: Process) -> None:
    """Write and print the tables over the folds, and over all scans the results that ``test.py`` writes.

    Args:
        group: the folder around the folds' runs.
        facts: what ``crossval.json`` says beside the scores.

    Raises:
        WriteError: if something can't be written.
    """
    records = {name: record for fold in folds for name, record in fold.records.items()}
    weights = [entry for fold in folds for entry in fold.job.made_with["weights"]]
    first = folds[0].job
    job = replace(first, made_with={**first.made_with, "weights": weights})
    save_results(Outcome(records), job, None)  # each fold's launch chose an engine

    tables = {which: _fold_scores(folds, which) for which in TABLES}
    save_fold_scores(group / "crossval.csv", tables)
    about = {
        "scans": len(records),
        "grid": "the scan's own",
        "absent organs": ABSENT,
        "standard deviations": "of a sample (n - 1)",
    }
    scores = {which: fold_record(table) for which, table in tables.items()}
    write_json(group / "crossval.json", {**facts, **about, "scores": scores})
    for which, table in tables.items():
        process.say(f"{TABLES[which].format(nsd_mm=job.nsd_mm)}, on the scan's own grid\n{fold_table(table)}")


def _fold_scores(folds: Sequence[ScannedFold], which: str) -> FoldScores:
    found = {}
    for fold in folds:
        scores = scores_of(list(fold.records.values()), tuple(fold.job.structures), which)
        assert scores is not None, "validation scans have labels"
        found[fold.number] = scores
    return FoldScores(found)


def knows_mirrored_scans(description: Description) -> bool:
    """Whether crops were flipped in training, so that mirrored passes may help."""
    if description.flips == "none":
        return False
    try:
        return len(description.mirrorings(mirrored=True)) > 1
    except InputError:  # a region whose mirror image is no region
        return False


def postprocess(folds: Sequence[ScannedFold], group: Path, process: Process) -> None:
    """Find out what helps at test time, and write it into the networks.

    Args:
        group: the folder around the folds' runs.

    Raises:
        InputError: if a mask, a label or a network can't be read.
        WriteError: if a network can't be written.
    """
    _require_readable(folds)
    findings = judge_folds(folds, process)
    job = folds[0].job
    write_json(group / "postprocessing.json", findings.record(job.organs))
    for fold in folds:
        write_into_networks(fold, findings.chosen)
    lines = [f"  {line}" for line in findings.lines(job.organs)]
    process.say("\n".join(["what helps at test time, out of fold", *lines]))
    done = one_line(findings.chosen.postprocessing.in_words(job.labels)) or "nothing"
    process.say(f"postprocessing of test.py: {done}; the networks say so, and {group / 'postprocessing.json'} says why")


def _require_readable(folds: Sequence[ScannedFold]) -> None:
    """Read all networks before the first is written, so that one that is damaged doesn't leave half of them written.

    Raises:
        InputError: if one can't be read.
    """
    for path in (path for fold in folds for path in _networks(fold)):
        try:
            read_checkpoint(path)
        except InputError as error:
            if path.name == LATEST:
                raise
            raise InputError(f"{error} Remove it: crossval goes by {LATEST}.") from error


def _networks(fold: ScannedFold) -> list[Path]:
    return [path for path in (fold.run / BEST, fold.run / LATEST) if path.exists()]


def write_into_networks(fold: ScannedFold, chosen: FromFolds) -> None:
    """Write what the folds tell into a fold's networks, the best and the latest.

    The weights stay as they are. So the fold's records go on being those of the network, whose file is another now.
    """
    for path in _networks(fold):
        write_from_folds(path, chosen)
    made_with_latest = [(fold.job, fold.records), *([] if fold.mirrored is None else [fold.mirrored])]
    for job, records in made_with_latest:
        for name, record in records.items():
            made_with = {**record["made_with"], "weights": [file_state(fold.run / LATEST)]}
            if made_with != record["made_with"]:
                write_json(job.record_file(name), {**record, "made_with": made_with})
