"""Score a trained network. ``python test.py --help`` lists the flags, the README tells how to use them."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utils import checkpoint
from utils.args import parse_test
from utils.data_check import check_scans
from utils.data_list import read_data_list
from utils.data_utils import Caching, validation_loader
from utils.distributed import Process, launch
from utils.errors import one_line_errors
from utils.files import writable_folder
from utils.inference import Predictor, score_scans
from utils.pictures import overlay, save_picture
from utils.precision import choose_precision
from utils.score_tables import save_scores, scan_table


def main(process: Process, args: argparse.Namespace) -> None:
    """Score the weights on a part of the data list, in this process of one or many."""
    weights = Path(args.pretrained_dir) / args.pretrained_model_name
    data = read_data_list(args.data_dir, args.json_list, args.fold)
    scans = data.labelled(args.split)
    network, description, source = checkpoint.load_for_testing(args, weights, data)
    settings = description.preprocessing
    output = Path(args.output_dir) if args.output_dir is not None else weights.parent / "scores"
    process.main_first(partial(writable_folder, output, "--output_dir"))
    if not args.skip_data_check:
        channels = (description.options["in_channels"], len(description.labels))
        process.main_first(partial(check_scans, scans, *channels, args.workers))

    loader = validation_loader(scans, settings, Caching(in_memory=False), process, workers=args.workers)
    network = process.place(network)
    precision = choose_precision(process.device, description.amp and not args.noamp, settings.roi)
    predictor = Predictor(settings.roi, settings.padding, args.infer_overlap, args.sw_batch_size, precision)
    process.say(f"{source}\n{len(scans)} {args.split} scans of {data.path}, on {process.device} in {precision}")

    scores, example = score_scans(network, loader, predictor, description.labels, process)
    process.say(f"Dice on the network's grid\n{scan_table(scores)}")
    if process.is_main:
        assert example is not None  # the main process has the first scan
        facts = {"weights": str(weights), "data_list": str(data.path), "split": args.split, "grid": "network"}
        save_scores(output, scores, facts)
        save_picture(overlay(example, description.labels, settings.spacing), output / "example.png")
        process.say(f"{output} holds scores.csv, scores.json and example.png")


def run(argv: Sequence[str] | None = None) -> None:
    """Test as a command line says; a mistake in it ends the program with one line."""
    with one_line_errors():
        launch(main, parse_test(argv))


if __name__ == "__main__":
    run()
