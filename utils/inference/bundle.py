"""A network as a bundle of MONAI, which MONAI runs on a folder of scans without this repository.

https://docs.monai.io/en/stable/mb_specification.html tells what is in its folder. ``configs/inference.json`` does what
:mod:`utils.data.preprocessing`, :mod:`utils.inference.sliding_window` and :mod:`utils.inference.scan_grid` do.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

import utils
from utils.checkpoints.description import Description
from utils.data.channels import RegionChannels
from utils.data.preprocessing import Preprocessing
from utils.inference.sliding_window import OVERLAP
from utils.system.errors import InputError
from utils.system.files import write_json, write_text
from utils.system.text import one_line
from utils.system.typed import shown_text

WEIGHTS, SCRIPT = "models/model.pt", "models/model.ts"
LICENSE = Path(__file__).parents[2] / "LICENSE"
SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
VERSION = "0.1.0"  # of the bundle: MONAI wants one
SIGNS = "$@%"  # MONAI takes a text with one of these for an expression, a reference or a macro
SHORT = 2**8  # labels that a byte holds
# that run a bundle, beside torch, MONAI and numpy
PACKAGES = {"nibabel": "nibabel", "pytorch-ignite": "0.5.5", "fire": "0.7.1"}
COMPONENTS = {"scikit-image": "0.26.0"}


def write_bundle(folder: Path, description: Description) -> list[str]:
    """Write all of a bundle but its models, which go to :data:`WEIGHTS` and :data:`SCRIPT`.

    Args:
        folder: an empty one.

    Returns:
        What ``test.py`` does with these weights that the bundle doesn't do.

    Raises:
        InputError: if a label's name means something else to MONAI.
        WriteError: if a file can't be written.
    """
    for name in (*description.labels, *description.output.names(description.labels)):
        if set(SIGNS) & set(name):
            raise InputError(
                f"`format` bundle: the label {shown_text(name)} has one of {' '.join(SIGNS)}, which MONAI would take "
                "for an expression. Rename it."
            )
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir()
    notes = []
    if description.from_folds.postprocessing.mirrored:
        notes.append("the folds found that mirrored passes help, which test.py makes and the bundle doesn't")
    write_json(folder / "configs/metadata.json", _metadata(description))
    write_json(folder / "configs/inference.json", _inference(description))
    write_text(folder / "docs/README.md", _readme(description, notes))
    write_text(folder / "LICENSE", LICENSE.read_text(encoding="utf-8"))
    return notes


def _metadata(description: Description) -> dict[str, Any]:
    """What MONAI's schema asks for."""
    settings, config = description.preprocessing, description.config
    is_ct = settings.intensity == "ct"
    window: dict[str, Any] = {"spatial_shape": list(settings.roi), "dtype": "float32", "is_patch_data": True}
    image = {
        "type": "image",
        "format": "hounsfield" if is_ct else "magnitude",
        "modality": "CT" if is_ct else "n/a",
        "num_channels": config.in_channels,
        **window,
        "value_range": [settings.b_min, settings.b_max] if is_ct else [],
        "channel_def": {str(channel): f"channel {channel}" for channel in range(config.in_channels)},
    }
    prediction = {
        "type": "image",
        "format": "segmentation",
        "num_channels": config.out_channels,
        **window,
        "value_range": [],
        "channel_def": {str(number): name for number, name in enumerate(description.output.names(description.labels))},
    }
    names = ", ".join(description.labels[1:])
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "exported"},
        "monai_version": str(monai.__version__),
        "pytorch_version": str(torch.__version__).split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": _packages(description),
        "name": f"{description.network} segmentation",
        "task": f"Segmentation of {names} in 3D",
        "description": f"A network {description.network}, exported by version {utils.__version__} of its repository",
        "authors": "those who trained the network",
        "copyright": "of those who trained the network",
        "intended_use": "Research. It is no medical device.",
        "labels": {str(value): name for value, name in enumerate(description.labels)},  # of masks
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }


def _packages(description: Description) -> dict[str, str]:
    """Versions of packages by name."""
    needed = {**PACKAGES, "nibabel": importlib.metadata.version("nibabel")}
    return needed | (COMPONENTS if description.from_folds.postprocessing.largest_component else {})


def _inference(description: Description) -> dict[str, Any]:
    """The config that ``python -m monai.bundle run`` executes."""
    settings = description.preprocessing
    return {
        "imports": ["$import functools", "$import glob", "$import os", "$import numpy", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "data": _scans(description.config.in_channels),
        "network_def": {
            "_target_": "torch.jit.load",
            "f": f"$os.path.join(@bundle_root, '{SCRIPT}')",
            "map_location": "@device",
        },
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(settings)},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(settings.roi),
            "sw_batch_size": 1,
            "overlap": OVERLAP,
            "mode": "gaussian",
            "padding_mode": "constant",
            "cval": settings.padding,
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(description)},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _scans(channels: int) -> str:
    """An expression: the files of each scan. Those of several channels end in ``_0000``, ``_0001``, …"""
    if channels == 1:
        return "$[{'image': path} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii*')))]"
    names = f"[path.replace('_0000.nii', '_%04d.nii' % channel) for channel in range({channels})]"
    return f"$[{{'image': {names}}} for path in sorted(glob.glob(os.path.join(@dataset_dir, '*_0000.nii*')))]"


def _preprocessing(settings: Preprocessing) -> list[dict[str, Any]]:
    """The transforms of :func:`utils.data.preprocessing.scan_transforms`."""
    window = {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        **{name: getattr(settings, name) for name in ("a_min", "a_max", "b_min", "b_max")},
        "clip": True,
    }
    crop = {
        "_target_": "CropForegroundd",
        "keys": "image",
        "source_key": "image",
        "select_fn": "$lambda image: image > image.min()",
        "allow_smaller": True,
    }
    standardise = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    return [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},  # MONAI Deploy leaves LoadImaged out, and needs this one
        {"_target_": "Orientationd", "keys": "image", "axcodes": settings.orientation, "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(settings.spacing), "mode": "bilinear"},
        *([window, crop] if settings.intensity == "ct" else [crop, standardise]),
    ]


def _postprocessing(description: Description) -> list[dict[str, Any]]:
    """From logits to the mask's file: probabilities are brought to the scan's own grid, and then compared."""
    output = description.output
    back = {
        "_target_": "Invertd",
        "keys": "pred",
        "orig_keys": "image",
        "transform": "@preprocessing",
        "nearest_interp": False,
        "to_tensor": True,
    }
    activation: list[dict[str, Any]] = [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]
    labels = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    if isinstance(output, RegionChannels):
        # each with its complement: at the box around the body MONAI lets both fade to 0, so none is compared with 1/2
        both = "$lambda pred: torch.cat([pred, 1 - pred])"
        activation = [
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            {"_target_": "Lambdad", "keys": "pred", "func": both},
        ]
        regions = len(output.order)
        steps = [[channel, channel + regions, label] for channel, label in output.written(regions)]
        # later regions write over earlier ones
        write = "mask.masked_fill(pred[step[0]] > pred[step[1]], step[2])"
        mask = f"functools.reduce(lambda mask, step: {write}, {steps}, torch.zeros_like(pred[:1]))"
        labels = {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda pred: {mask}"}
    component = {
        "_target_": "KeepLargestConnectedComponentd",
        "keys": "pred",
        "applied_labels": list(description.from_folds.postprocessing.largest_component),
        "is_onehot": False,
        "independent": True,
        "connectivity": 3,
    }
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_ext": ".nii.gz",
        "output_dtype": "$numpy.uint8" if len(description.labels) <= SHORT else "$numpy.uint16",
        "resample": False,
        "separate_folder": False,
    }
    return [
        *activation,
        back,
        labels,
        *([component] if component["applied_labels"] else []),
        save,
    ]


def _readme(description: Description, notes: list[str]) -> str:
    """How to run the bundle, and what the mask's values mean."""
    packages = " ".join(f"{name}=={version}" for name, version in _packages(description).items())
    scans = "`*.nii` and `*.nii.gz`"
    if description.config.in_channels > 1:
        scans += f" with the endings `_0000` to `_{description.config.in_channels - 1:04d}`, one file for each channel"
    rows = "\n".join(f"| {value} | {one_line(name)} |" for value, name in enumerate(description.labels))
    more = "".join(f"\nNote: {note}.\n" for note in notes)
    return f"""# Segmentation by a network {description.network}

In this folder:

```
pip install torch=={str(torch.__version__).split("+")[0]} monai=={monai.__version__} {packages}
python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS --output_dir MASKS
```

It reads all {scans} in SCANS. MASKS gets a mask for each scan, `NAME_seg.nii.gz`, on the scan's own grid.
{more}
| value | label |
| --- | --- |
{rows}

`models/model.ts` is the network as TorchScript, which computes in float32. `models/model.pt` holds its weights alone.
`configs/metadata.json` says what it takes and gives.
"""
