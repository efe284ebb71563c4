"""What ``test.py`` leaves over all scans: tables, tables of labels for viewers, and the report."""

import shlex
import sys
from datetime import datetime
from typing import Any

import monai
import torch

import utils
from utils.evaluation.measurements import save_measurements, scores_of
from utils.evaluation.report import write_report
from utils.evaluation.tables import save_scores, scan_table, volume_table
from utils.segmentation.job import RECORDS, Order
from utils.segmentation.masks import write_label_tables
from utils.segmentation.pipeline import Outcome
from utils.system.files import lock, writable_folder

GRIDS = {"dice_network_grid": "the network's grid", "dice": "the scan's own grid"}


def claim_results(order: Order) -> None:
    """Make the folder of the results, and lock it against other programs as long as this process lives.

    Raises:
        InputError: if it can't be written to, or another program has locked it.
    """
    writable_folder(order.folder, "--output_dir")
    records = writable_folder(order.folder / RECORDS, "--output_dir")
    lock(
        records,
        f"--output_dir {order.folder}: another program is writing there. Wait for its end, or give another folder.",
    )


def write_results(outcome: Outcome, order: Order, engine: str) -> None:
    """Print the tables and write them, with the report, for the scans that are finished.

    Args:
        engine: what computed the forward passes, for the report.

    Raises:
        WriteError: if something can't be written.
    """
    records = list(outcome.records.values())
    if outcome.earlier:
        print(f"{outcome.earlier} of {len(records)} scans were finished before; --overwrite does them again")
    if not records:
        return
    for which, grid in GRIDS.items():
        scores = scores_of(records, tuple(order.organs.values()), which)
        if scores is not None:
            print(f"Dice on {grid}\n{scan_table(scores)}")
    unlabelled = [record for record in records if not record["labelled"]]
    if unlabelled:
        print(f"volumes in ml\n{volume_table(unlabelled)}")
    written = save_results(outcome, order, engine)
    print(f"{order.folder} holds {', '.join(written[:-1])} and {written[-1]}")


def save_results(outcome: Outcome, order: Order, engine: str) -> list[str]:
    """Write the tables and the report of :func:`write_results`; what the folder holds then.

    Raises:
        WriteError: if something can't be written.
    """
    records = list(outcome.records.values())
    facts = _facts(outcome, order, engine)
    folder = order.folder
    written = ["masks", "measurements.csv", "measurements.json", "report.html"]
    scores = scores_of(records, tuple(order.organs.values()), "dice_network_grid")
    if scores is not None:
        save_scores(folder, scores, {**facts, "grid": "network"})
        written += ["scores.csv", "scores.json"]
    else:  # what an earlier command scored isn't of these scans
        for name in ("scores.csv", "scores.json"):
            (folder / name).unlink(missing_ok=True)
    save_measurements(folder, records, facts)
    write_label_tables(folder, order.organs)
    pictures = {record["scan"]: order.picture(record["scan"]) for record in records}
    write_report(folder / "report.html", records, pictures, {name: str(fact) for name, fact in facts.items()})
    return written


def _facts(outcome: Outcome, order: Order, engine: str) -> dict[str, Any]:
    failed = {"failed": "; ".join(outcome.faults.values())} if outcome.faults else {}
    return {
        **failed,
        "command": shlex.join(sys.argv),
        "weights": ", ".join(path for path, *_ in order.made_with["weights"]),
        "made": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "versions": f"UNETR {utils.__version__}, torch {torch.__version__}, MONAI {monai.__version__}",
        "engine": engine,
        "tolerance of the surface Dice": f"{order.nsd_mm:g} mm",
    }
