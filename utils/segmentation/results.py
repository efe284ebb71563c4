"""Tables and report over all scans of an output folder."""

import shlex
import sys
from datetime import datetime
from typing import Any

import monai
import torch

import utils
from utils.distributed.process import Process
from utils.evaluation.measurements import predictions_of, save_measurements, scores_of
from utils.evaluation.report import write_report
from utils.evaluation.tables import save_scores, scan_table, volume_table
from utils.evaluation.view import FOLDER as VIEWS
from utils.evaluation.view import PAGE
from utils.segmentation.job import RECORDS, SegmentationJob
from utils.segmentation.masks import write_label_tables
from utils.segmentation.pipeline import Outcome
from utils.system.errors import InputError, Spell
from utils.system.files import lock, remove, writable_folder

GRIDS = {"dice_network_grid": "the network's grid", "dice": "the scan's own grid"}


def claim_results(job: SegmentationJob) -> None:
    """Make the output folder, and lock it against other programs until this process ends.

    Raises:
        InputError: if it isn't writable, or another program has locked it.
    """
    writable_folder(job.folder, "`output_dir`")
    for inner in (job.folder / RECORDS, job.folder / VIEWS):
        if inner.is_symlink():
            raise InputError(
                f"`output_dir` {job.folder}: {inner} is a link, and results are written below the folder alone. Remove "
                "it, or give another folder."
            )
    records = writable_folder(job.folder / RECORDS, "`output_dir`")
    writable_folder(job.folder / VIEWS, "`output_dir`")
    lock(
        records,
        f"`output_dir` {job.folder}: another program is writing there. Wait for its end, or give another folder.",
    )


def write_results(outcome: Outcome, job: SegmentationJob, engine: str, process: Process) -> None:
    """Write tables and report, and print the tables of the finished scans.

    Args:
        engine: what computed the forward passes, for the report.

    Raises:
        WriteError: if something can't be written.
    """
    records = list(outcome.records.values())
    if not records:
        return
    written = save_results(outcome, job, engine, process.spell)
    if outcome.earlier:
        process.say(f"{outcome.earlier} of {len(records)} scans were finished before; `overwrite` does them again")
    for which, grid in GRIDS.items():
        scores = scores_of(records, tuple(job.structures), which)
        if scores is not None:
            process.say(f"Dice on {grid}\n{scan_table(scores)}")
    unlabelled = [record for record in records if not record["labelled"]]
    if unlabelled:
        process.say(f"volumes in ml\n{volume_table(unlabelled)}")
        predictions = predictions_of(unlabelled, tuple(job.structures))
        if predictions is not None:
            found = [[one["volume_ml"] > 0 for one in record["organs"].values()] for record in unlabelled]
            table = scan_table(predictions, found)
            process.say(f"predicted Dice, by what the folds of a cross-validation showed\n{table}")
    process.say(f"{job.folder} holds {', '.join(written[:-1])} and {written[-1]}")


def save_results(outcome: Outcome, job: SegmentationJob, engine: str | None, spell: Spell = str) -> list[str]:
    """Write tables and report.

    Args:
        engine: what computed the forward passes, for the report; None if that isn't known.
        spell: how the program spells the settings that a fault names in backquotes.

    Returns:
        What the folder holds then, for people to read.

    Raises:
        WriteError: if something can't be written.
    """
    records = list(outcome.records.values())
    facts = _facts(outcome, job, engine, spell)
    folder = job.folder
    written = ["masks", "measurements.csv", "measurements.json", "report.html", PAGE]
    scores = scores_of(records, tuple(job.structures), "dice_network_grid")
    if scores is not None:
        save_scores(folder, scores, {**facts, "grid": "network"})
        written += ["scores.csv", "scores.json"]
    else:  # remove those of an earlier command, which scored other scans
        for name in ("scores.csv", "scores.json"):
            remove(folder / name)
    save_measurements(folder, records, facts)
    write_label_tables(folder, job.organs)
    pictures = {record["scan"]: job.picture_file(record["scan"]) for record in records}
    views = {record["scan"]: job.view_file(record["scan"]) for record in records}
    write_report(folder / "report.html", records, pictures, {name: str(fact) for name, fact in facts.items()}, views)
    return written


def _facts(outcome: Outcome, job: SegmentationJob, engine: str | None, spell: Spell) -> dict[str, Any]:
    """What tables and report say about the whole, by name."""
    failed = {"failed": spell("; ".join(outcome.faults.values()))} if outcome.faults else {}
    return {
        **failed,
        "command": shlex.join(sys.argv),
        "weights": ", ".join(path for path, *_ in job.made_with["weights"]),
        "made": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "versions": f"UNETR {utils.__version__}, torch {torch.__version__}, MONAI {monai.__version__}",
        **({} if engine is None else {"engine": engine}),
        "tolerance of the surface Dice": f"{job.nsd_mm:g} mm",
    }
