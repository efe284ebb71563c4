"""Write a trained network for other programs: ``python -m utils.export runs/NAME/model.pt --format onnx``.

TorchScript and ONNX hold the network itself; a bare state dict and a safetensors file hold its weights under the
published names. Each also holds ``unetr.json``, a JSON text with what inference has to know: labels, spacing, window,
intensities. A bundle is a folder that MONAI runs on scans. A zip archive holds all networks of a run,
and ``test.py`` takes it as an ensemble.
"""

import argparse
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from networks.registry import find_architecture
from utils.checkpoints.description import METADATA, Description, describe
from utils.checkpoints.load import build_with_weights, refuse_encoder
from utils.checkpoints.read import read_checkpoint, read_torchscript
from utils.checkpoints.save import add_metadata
from utils.checkpoints.task import write_task
from utils.config.messages import name_flags
from utils.config.parser import Parser, file_path
from utils.inference.bundle import LICENSE, SCRIPT, WEIGHTS, write_bundle
from utils.system.errors import InputError, WriteError, one_line_errors
from utils.system.files import atomic_write, writable_folder
from utils.system.tensors import save_tensors
from utils.training.run_folder import BEST, LATEST

TOLERANCE = 1e-4
ENDINGS = {
    "torchscript": "_torchscript.pt",
    "onnx": ".onnx",
    "state_dict": "_state_dict.pth",
    "safetensors": ".safetensors",
}
BUNDLE, TASK = "bundle", "zip"
OF_A_TASK = ("plan.args", "postprocessing.json", "crossval.csv", "crossval.json")
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trained:
    """A network to be written.

    Attributes:
        metadata: what its checkpoint says of it, as JSON.
        windows: (2, C, D, H, W), random, to compare logits.
    """

    network: nn.Module
    description: Description
    metadata: str
    windows: Tensor


def export(weights: Path, format_name: str, output: Path) -> float:
    """Write the network of a checkpoint in another format, and check that the file gives the same logits.

    ``output`` is written in one step: after an error it is as it was before.

    Args:
        format_name: one of :data:`ENDINGS`.

    Returns:
        The largest difference between the logits of network and file, on random windows.

    Raises:
        InputError: if the checkpoint can't be read or is ``output`` itself, a package for the format is missing, or
            the file gives other logits.
        WriteError: if ``output`` can't be written.
    """
    if output.exists() and weights.exists() and output.samefile(weights):
        raise InputError(f"--output {output}: is the checkpoint itself, which would be lost. Give another file.")
    trained = _trained(weights)
    with atomic_write(output) as temporary, torch.inference_mode():
        forward = WRITERS[format_name](temporary, trained.network, trained.windows, trained.metadata)
        return _difference(trained, forward, output)


def export_bundle(weights: Path, output: Path) -> tuple[float, list[str]]:
    """Write the network of a checkpoint as a bundle of MONAI, a folder that appears when it is whole.

    Returns:
        The largest difference between the logits of network and TorchScript, and notes.

    Raises:
        InputError: if the checkpoint can't be read, ``output`` is there already, or torch can't write the network.
        WriteError: if something can't be written.
    """
    if output.exists():
        raise InputError(f"--output {output}: is there already. Give a new folder's name, or remove it.")
    trained = _trained(weights)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{BUNDLE}_") as temporary:
        folder = Path(temporary) / BUNDLE
        try:
            folder.mkdir()
            notes = write_bundle(folder, trained.description)
            with torch.inference_mode():
                _write_state_dict(folder / WEIGHTS, trained.network, trained.windows, trained.metadata)
                forward = _write_torchscript(folder / SCRIPT, trained.network, trained.windows, trained.metadata)
                difference = _difference(trained, forward, output)
            folder.rename(output)
        except OSError as error:
            raise WriteError(f"{output}: can't be written ({error.strerror or error})") from error
    return difference, notes


def _trained(weights: Path) -> Trained:
    """The network of a checkpoint, without what only training needs.

    Raises:
        InputError: if the checkpoint can't be read, or doesn't describe its network.
    """
    content = read_checkpoint(weights)
    description = describe(content, weights)
    if description is None:
        raise InputError(f"{weights}: doesn't describe its network. Give a checkpoint of main.py.")
    refuse_encoder(description, weights)
    supervised = description.options.get("deep_supervision", False)
    if supervised:  # only training needs the outputs at coarser resolutions
        config: Any = description.config
        description = replace(description, config=replace(config, deep_supervision=False))
        kept = description.build_empty().state_dict()
        state_dict = {name: tensor for name, tensor in content["state_dict"].items() if name in kept}
        content = {**content, "state_dict": state_dict}
    network = build_with_weights(description, content, weights)[0].eval()
    facts = {name: value for name, value in content.items() if name not in ("state_dict", "resume")}
    facts["network"] = description.content()["network"]
    generator = torch.Generator().manual_seed(0)
    # two windows: from one, an exporter may conclude that a batch has one sample
    windows = torch.randn(2, description.config.in_channels, *description.preprocessing.roi, generator=generator)
    return Trained(network, description, json.dumps(facts, indent=2), windows)


def _difference(trained: Trained, forward: Forward, output: Path) -> float:
    """The largest difference between the logits of network and file.

    Raises:
        InputError: if it is too large.
    """
    expected = trained.network(trained.windows)
    difference = float((forward(trained.windows) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"{output}: not written, since its logits differ from the network's by {difference}. Give another "
            "--format, or take the versions of requirements.txt."
        )
    return difference


def _write_torchscript(path: Path, network: nn.Module, windows: Tensor, metadata: str) -> Forward:
    try:
        script = torch.jit.script(network)
    except torch.jit.frontend.NotSupportedError as error:  # MONAI's Swin UNETR
        raise InputError(
            "--format torchscript: torch can't write this network as TorchScript. Give --format onnx."
        ) from error
    with open(path, "wb") as file:  # given a path, torch hides a full disk behind another error
        torch.jit.save(script, file, _extra_files={METADATA: metadata})
    return read_torchscript(path)[0]


def _write_onnx(path: Path, network: nn.Module, windows: Tensor, metadata: str) -> Forward:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ModuleNotFoundError as error:
        raise InputError(f"--format onnx: needs {error.name}. pip install -r requirements.txt installs it.") from error
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d) and layer.bias is None:
            # for a convolution without a bias onnxscript writes one of a wrong shape, which onnxruntime refuses
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that aren't needed
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # raised by torch's own calls
            program = torch.onnx.export(
                network,
                (windows,),
                input_names=["volume"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(
            f"--format onnx: torch {torch.__version__} can't write this network as ONNX. Export it with torch 2.13."
        ) from error
    assert program is not None, "with dynamo=True torch returns a program"
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA: metadata})
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path)
    return lambda volume: torch.from_numpy(session.run(["logits"], {"volume": volume.numpy()})[0])


def _write_state_dict(path: Path, network: nn.Module, windows: Tensor, metadata: str) -> Forward:
    with open(path, "wb") as file:
        save_tensors(dict(network.state_dict()), file)
    add_metadata(path, metadata)
    return _read_back(path)


def _write_safetensors(path: Path, network: nn.Module, windows: Tensor, metadata: str) -> Forward:
    # safetensors takes no tensors that share memory, nor others than contiguous ones
    weights = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()
    }
    # other programs look for "format" to know that a file is torch's. Given a path, safetensors hides a full disk
    path.write_bytes(safetensors.torch.save(weights, {"format": "pt", METADATA: metadata}))
    return _read_back(path)


def _read_back(path: Path) -> Forward:
    """The network of a file of weights that describe themselves."""
    content = read_checkpoint(path)
    description = describe(content)
    assert description is not None
    return build_with_weights(description, content, path)[0].eval()


WRITERS: Mapping[str, Callable[[Path, nn.Module, Tensor, str], Forward]] = {
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
    "state_dict": _write_state_dict,
    "safetensors": _write_safetensors,
}


FORMATS = (*WRITERS, BUNDLE, TASK)
FOLD = re.compile(r"fold\d+")  # the folder of a fold, below that of its cross-validation


def export_task(run: Path, output: Path) -> int:
    """Write the networks of a run of ``main.py`` or ``utils.crossval`` into one archive, with what is known of them.

    Of a cross-validation these are the folds' latest networks, whose scores it has; of a single run the best one.

    Returns:
        How many networks.

    Raises:
        InputError: if the folder has no network, or one can't be read.
        WriteError: if the archive can't be written.
    """
    folds = [path for path in sorted(run.glob(f"fold*/{LATEST}")) if FOLD.fullmatch(path.parent.name)]
    networks = {path.parent.name: path for path in folds}
    if not networks:
        networks = {path.stem: path for path in (run / BEST, run / LATEST) if path.is_file()}
        networks = dict(list(networks.items())[:1])
    if not networks:
        raise InputError(f"{run}: holds no {BEST}, {LATEST} or fold*/{LATEST}. Give the folder of a run.")
    write_task(output, networks, [path for name in OF_A_TASK if (path := run / name).is_file()] + [LICENSE])
    return len(networks)


def main(args: argparse.Namespace) -> None:
    """Export, and print the file's size and accuracy."""
    weights = Path(args.weights)
    if args.format == TASK and not weights.is_dir():
        raise InputError(f"{weights}: is no folder. Give that of a run: --format {TASK} takes all its networks.")
    if args.model_name is not None:
        find_architecture(args.model_name)  # its checkpoints can be read after that
    if args.format == TASK:
        folder = Path(os.path.abspath(weights))  # which has a name, even where the flag is “.”
        output = folder.with_name(f"{folder.name}.zip") if args.output is None else Path(args.output)
        writable_folder(output.parent, "--output")
        count = export_task(weights, output)
        print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB; networks: {count}")
        return
    if weights.is_dir():
        raise InputError(f"{weights}: is a folder. Give its model.pt, or --format {TASK} for all its networks.")
    if not weights.is_file():
        raise InputError(f"{weights}: no such file. Give a checkpoint of main.py: its runs hold model.pt.")
    ending = f"_{BUNDLE}" if args.format == BUNDLE else ENDINGS[args.format]
    output = weights.with_name(weights.stem + ending) if args.output is None else Path(args.output)
    writable_folder(output.parent, "--output")
    notes: list[str] = []
    if args.format == BUNDLE:
        difference, notes = export_bundle(weights, output)
    else:
        difference = export(weights, args.format, output)
    size = sum(file.stat().st_size for file in (output, *output.rglob("*")) if file.is_file()) / 2**20
    print(
        f"{output}: {size:.1f} MiB; its logits differ from the network's by at most {difference:.1e} (random windows)"
    )
    for note in notes:
        print(f"note: {note}")


if __name__ == "__main__":
    parser = Parser(prog="python -m utils.export", description="Write a trained network for other programs.")
    parser.add_argument(
        "weights", type=file_path, help="a checkpoint: runs/NAME/model.pt; for zip the folder: runs/NAME"
    )
    parser.add_argument("--format", choices=FORMATS, default="torchscript", help=", ".join(FORMATS))
    parser.add_argument(
        "--output", type=file_path, metavar="FILE", help="the file or folder to write (default: beside the checkpoint)"
    )
    parser.add_argument(
        "--model_name", metavar="FILE", help="for a network of your own: its .py file, which is code and is run"
    )
    with one_line_errors(name_flags):
        main(parser.parse_args())
