"""Segment scans with a trained network. ``python test.py --help`` lists the flags, the README tells how to use them."""

from utils.config.help_text import show_help

if __name__ == "__main__":
    show_help("test")  # before torch is imported, which takes two seconds

import gc

gc.disable()  # while importing: looking for garbage in what stays takes 0.7 s, and as long again at the end

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utils.checkpoints.load import load_ensemble, weight_files
from utils.config.flags import parse_test
from utils.config.messages import name_flags
from utils.config.settings import job_from_args, launch_settings, load_settings
from utils.data.data_list import DataList, read_data_list, unlisted
from utils.distributed.launch import launch
from utils.distributed.process import Process
from utils.inference.engines import place_networks
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.find_scans import FoundScans, find_scans, require_elsewhere
from utils.segmentation.job import SegmentationJob
from utils.segmentation.pipeline import gather_outcomes, segment_scans
from utils.segmentation.records import named_as_before
from utils.segmentation.results import claim_results, write_results
from utils.system.allocator import return_freed_memory
from utils.system.errors import InputError, one_line_errors
from utils.system.files import file_state, remove
from utils.system.text import one_line

gc.freeze()
gc.enable()


def main(process: Process, args: argparse.Namespace) -> None:
    """Segment scans with the networks of some weights files, in this process of one or many."""
    weights = weight_files(Path(args.pretrained_dir), args.pretrained_model_name)
    process.require_same_files(weights)
    files = [file_state(path) for path in weights]  # before they are read, since a training may go on in their folder
    listed = args.input is None
    data = read_data_list(args.data_dir, args.json_list, args.fold) if listed else unlisted(args.json_list)
    members, source = load_ensemble(load_settings(args), weights, data)
    description = members[0][1]
    settings = description.preprocessing
    job = job_from_args(args, files, [one for _, one in members])
    mirrorings = description.mirrorings(job.postprocessing.mirrored)
    if not listed:
        require_elsewhere(job.folder, args.input)
    process.on_main_then_broadcast("claiming --output_dir", partial(claim_results, job))
    found = process.on_main_then_broadcast("finding scans", partial(scans_to_segment, args, data, job))

    networks, engine = place_networks(args.engine, members, not args.noamp, process)
    del members  # another engine has weights of its own
    return_freed_memory()
    ensemble = Ensemble(networks, mirrorings)
    predictor = Predictor(
        settings.roi, settings.padding, args.infer_overlap, args.sw_batch_size, process.device,
        output=description.output,
    )  # fmt: skip
    place = f"under {args.split} of {data.path}" if listed else "of --input"
    process.say(f"{source}\nscans {place}: {len(found.scans)}, on {process.device} in {networks[0][1]}")
    if engine != "torch":
        process.say(f"engine: {engine}")
    others = sum(not scan.is_series for scan in found.scans)
    if args.rtstruct and others:
        verbs = ("is", "gets") if others == 1 else ("are", "get")
        process.say(
            f"note: {others} of {len(found.scans)} scans {verbs[0]} no DICOM series, and {verbs[1]} no RTSTRUCT"
        )
    if args.tta and description.flips is None:
        process.say("note: the weights don't say how crops were flipped in training; --tta takes the flips of 2021")
    if done := job.postprocessing.in_words(job.labels, len(mirrorings)):
        process.say(f"postprocessing, by the folds or flags: {one_line(done)}")
    for note in [*found.remarks, *found.faults.values()]:
        process.say(f"note: {note}")

    outcome = segment_scans(
        process.shard(found.scans), job, ensemble, predictor, process,
        overwrite=args.overwrite, read_ahead=args.workers > 0,
    )  # fmt: skip
    outcome = gather_outcomes(outcome, found, process)
    if process.is_main:
        write_results(outcome, job, engine, process)
        if outcome.faults:
            log = f" ({job.error_log} has the tracebacks)" if job.error_log.exists() else ""
            raise InputError(
                f"{len(outcome.faults)} failed and {len(outcome.records)} done; launch the same command again for the "
                f"rest when these are mended{log}:\n       " + "\n       ".join(outcome.faults.values())
            )


def scans_to_segment(args: argparse.Namespace, data: DataList, job: SegmentationJob) -> FoundScans:
    """The scans that ``--input`` or the data list's ``--split`` means.

    Raises:
        InputError: if there is none, or a result would take the place of a scan or lie among scans.
        WriteError: if the log of an earlier launch can't be removed.
    """
    if args.input is not None:
        found = find_scans(args.input, job.in_channels)
        if not found.scans:
            raise InputError("\n       ".join(found.faults.values()))
        found.scans = named_as_before(found.scans, job)
    else:
        data.require(args.split)
        found = FoundScans(scans=getattr(data, args.split))
    job.require_no_scan_replaced(found.scans, args.input or ())
    remove(job.error_log)
    return found


def run(argv: Sequence[str] | None = None) -> None:
    """Test as a command line says; a mistake in it ends the program with one line."""
    with one_line_errors(name_flags):
        args = parse_test(argv)
        launch(partial(main, args=args), launch_settings(args), name_flags)


if __name__ == "__main__":
    run()
