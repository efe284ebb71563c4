"""What a checkpoint holds, and what it says of its network.

``model.pt`` (the best) holds what inference needs, ``model_final.pt`` (the latest) also what resuming needs:

=================  =============================================================================
``format``         version of this layout
``network``        ``name``, and ``options``: the fields of its config; for a network from a file of
                   one's own also ``file``: its name and SHA-256
``preprocessing``  the fields of :class:`utils.data.preprocessing.Preprocessing`
``labels``         names of the classes, the background first
``regions``        (where there are some) labels of each region by name; with ``regions_class_order``
                   there is a channel for each, as :mod:`utils.data.regions` reads them
``amp``            whether mixed precision was on
``flips``          how crops were flipped: ``none``, ``published``, ``anatomical``, ``left_right``
``from_folds``     what a cross-validation found: ``largest_component`` (labels), ``mirrored``, and
                   ``models``, from which a mask's Dice is predicted
``state_dict``     the weights, under the published names; with ``ema_decay`` their average
``epoch``          epochs of training behind them
``score``          mean Dice of the last validation up to then, or None
``versions``       of torch, MONAI and this repository
``command``        the command line that made it
``resume``         (latest only) optimizer, scaler, :class:`utils.checkpoints.progress.Progress`, flags and
                   data list; with ``ema_decay`` also the weights that the average is of
=================  =============================================================================

Schedule and random numbers are functions of the step, so ``resume`` needs neither.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import monai
import torch
from torch import nn

import utils
from networks import NETWORKS
from networks.registry import (
    AUTOENCODERS,
    OF_THE_WINDOW,
    Architecture,
    NetworkConfig,
    architecture_of,
    file_given,
)
from utils.checkpoints.postprocessing import FromFolds, from_folds
from utils.checkpoints.schema import check_metadata, describes_itself
from utils.data.channels import CLASSES, Channels, Region
from utils.data.data_list import clean_labels
from utils.data.mirroring import Mirroring, trained_mirrorings
from utils.data.preprocessing import Preprocessing
from utils.data.regions import read_regions, regions_as_json, scored_structures
from utils.system.errors import DamagedError, InputError
from utils.system.typed import shown, shown_text

# 3 is of networks that were trained by regions, whose channels an earlier version would take for labels
FORMAT, OF_LABELS = 3, 2
METADATA = "unetr.json"  # the name of the description inside files of other formats


@dataclass(frozen=True)
class Description:
    """All that inference needs to know of a network beside its weights.

    Attributes:
        config: the network's settings; their class says which network it is.
        labels: names of the classes, the background first.
        amp: whether mixed precision may be used.
        flips: how crops were flipped in training, ``none``, ``published``, ``anatomical`` or
            ``left_right``; None if that isn't known.
        regions: unions of labels, which are scored too.
        output: what the channels of the network's output are.
        from_folds: what a cross-validation found.
    """

    config: NetworkConfig
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    amp: bool
    flips: str | None = None
    regions: tuple[Region, ...] = ()
    output: Channels = CLASSES
    from_folds: FromFolds = field(default_factory=FromFolds)

    @property
    def architecture(self) -> Architecture:
        """The registered network."""
        return architecture_of(self.config)

    @property
    def network(self) -> str:
        """Its name."""
        return self.architecture.name

    @property
    def options(self) -> dict[str, Any]:
        """The fields of its config by name."""
        return asdict(self.config)

    def settings(self) -> dict[str, Any]:
        """Network and preprocessing by the names of their flags."""
        own = {name: value for name, value in self.options.items() if name not in OF_THE_WINDOW}
        return {"model_name": self.architecture.title, **own, **preprocessing_settings(self.preprocessing)}

    def mirrorings(self, mirrored: bool) -> tuple[Mirroring, ...]:
        """How the passes of a window are mirrored: as crops were in training, or not at all; the first one isn't.

        Raises:
            InputError: if crops were not flipped in training.
        """
        found = trained_mirrorings(self.flips, self.labels) if mirrored else (Mirroring(),)
        return tuple(map(self.output.mirrored, found))

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return self.architecture.build(self.config)

    def build_empty(self) -> nn.Module:
        """The network, to be filled with a file's weights; see :meth:`networks.registry.Architecture.build_empty`."""
        return self.architecture.build_empty(self.config)

    def content(self) -> dict[str, Any]:
        """The part of a checkpoint that says this."""
        network: dict[str, Any] = {"name": self.network, "options": self.options}
        if self.architecture.file is not None:
            network["file"] = {"name": self.architecture.file.name, "sha256": self.architecture.sha256}
        return {
            "format": OF_LABELS if self.output.exclusive else FORMAT,
            "network": network,
            "preprocessing": asdict(self.preprocessing),
            "labels": list(self.labels),
            **regions_as_json(self.regions, self.output),
            "amp": self.amp,
            "flips": self.flips,
            "from_folds": self.from_folds.content(),
            "versions": {"torch": str(torch.__version__), "monai": str(monai.__version__), "unetr": utils.__version__},
            "command": shlex.join(sys.argv),
        }


def refuse_newer(content: Mapping[str, Any], source: object) -> None:
    """Check that this version knows a checkpoint's format and network.

    Raises:
        InputError: if it doesn't.
    """
    network = content.get("network")
    name = network.get("name") if isinstance(network, Mapping) and "file" not in network else None
    newer = isinstance(content.get("format"), int) and content["format"] > FORMAT
    if newer or (isinstance(name, str) and name not in NETWORKS and name not in AUTOENCODERS):
        raise InputError(f"{source}: was made by a newer version of this program. Update it.")


def describe(content: Mapping[str, Any], source: object = "the checkpoint") -> Description | None:
    """What a checkpoint says of its network; None for bare weights, which say nothing.

    Args:
        source: the file, for messages.

    Raises:
        DamagedError: if it says what can't be.
        InputError: if its network is of a file that wasn't given in this program, or of a newer version.
    """
    if not describes_itself(content):
        return None
    refuse_newer(content, source)
    said = check_metadata(content, source)
    network = said["network"]
    try:
        if "file" in network:
            architecture = file_given(network["name"], network["file"]["name"], network["file"]["sha256"])
        else:
            architecture = {**NETWORKS, **AUTOENCODERS}[network["name"]]
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    preprocessing = _preprocessing(said["preprocessing"], source)
    # checkpoints before this version didn't record the window and its spacing for every network
    window = {"img_size": preprocessing.roi, "spacing": preprocessing.spacing}
    try:
        config = architecture.make_config({**window, **network["options"]})
    except ValueError as error:
        raise DamagedError(f"{source}: its network can't be built: {error}.") from error
    if (config.img_size, config.spacing) != (preprocessing.roi, preprocessing.spacing):
        raise DamagedError(f"{source}: its network and its preprocessing have other windows. Give another file.")
    try:
        labels = clean_labels(said["labels"])
        regions, output = read_regions(said, labels)
        folds = from_folds(said.get("from_folds"), scored_structures(labels, regions))
    except ValueError as error:
        raise DamagedError(f"{source}: {error}. Give another file.") from error
    channels, kinds = len(output.names(labels)), ("labels", "classes") if output.exclusive else ("regions", "channels")
    if channels != config.out_channels:
        raise DamagedError(
            f"{source}: names {channels} {kinds[0]} for {config.out_channels} {kinds[1]}. Give another file."
        )
    return Description(
        config=config,
        preprocessing=preprocessing,
        labels=labels,
        amp=said["amp"],
        flips=said.get("flips"),
        regions=regions,
        output=output,
        from_folds=folds,
    )


def _preprocessing(fields: Mapping[str, Any], source: object) -> Preprocessing:
    """The preprocessing from a checkpoint's fields.

    Raises:
        DamagedError: if some lack, are unknown, or can't be.
    """
    own = list(asdict(Preprocessing()))
    other = [f"lacks {name}" for name in own if name not in fields]
    other += [f"has {shown(name)}" for name in fields if name not in own]
    if other:
        raise DamagedError(f"{source}: its preprocessing {other[0]}. Give another file.")
    try:
        return Preprocessing(**fields)
    except ValueError as error:
        raise DamagedError(f"{source}: its scans can't be preprocessed: {error}.") from error


def preprocessing_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """The preprocessing by the names of its flags: the window is ``roi_x`` and so on."""
    settings = {name: getattr(preprocessing, name) for name in ("intensity", "a_min", "a_max", "b_min", "b_max")}
    settings |= {f"space_{axis}": value for axis, value in zip("xyz", preprocessing.spacing, strict=True)}
    settings |= {f"roi_{axis}": value for axis, value in zip("xyz", preprocessing.roi, strict=True)}
    return settings


def preprocessing_from(settings: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing from the settings of :func:`preprocessing_settings`; those that lack have their defaults.

    Raises:
        InputError: if no scan can be preprocessed with them.
    """
    found = {**preprocessing_settings(Preprocessing()), **settings}
    try:
        return Preprocessing(
            intensity=found["intensity"],
            a_min=found["a_min"],
            a_max=found["a_max"],
            b_min=found["b_min"],
            b_max=found["b_max"],
            spacing=(found["space_x"], found["space_y"], found["space_z"]),
            roi=(found["roi_x"], found["roi_y"], found["roi_z"]),
        )
    except ValueError as error:
        raise InputError(f"{error}.") from error


def config_from(architecture: Architecture, settings: Mapping[str, Any], preprocessing: Preprocessing) -> NetworkConfig:
    """A network's config from settings by the names of flags; those that aren't the network's are passed over.

    A setting that nobody gave (None) has its default.

    Raises:
        InputError: if the settings can't make it.
    """
    own = {name: value for name, value in settings.items() if name in architecture.flags and value is not None}
    try:
        return architecture.make_config({**own, "img_size": preprocessing.roi, "spacing": preprocessing.spacing})
    except ValueError as error:
        raise InputError(f"{error}.") from error


def refuse_contradictions(path: Path | str, given: Mapping[str, Any], recorded: Mapping[str, Any], remedy: str) -> None:
    """Compare settings with those that a checkpoint records.

    Raises:
        InputError: naming each that differs, with both values.
    """
    faults = [
        f"`{name}` {setting_text(given[name])} contradicts its {setting_text(recorded[name])}"
        for name in differing_settings(given, recorded)
    ]
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}. {remedy}")


def differing_settings(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """The settings that contradict what is recorded; ``model_name`` alone if it does, since others follow from it."""
    differing = [name for name, value in given.items() if name in recorded and value != recorded[name]]
    return ["model_name"] if "model_name" in differing else differing


def setting_text(value: Any) -> str:
    """A setting's value for a message; a switch is on or off."""
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else shown_text(str(value))
