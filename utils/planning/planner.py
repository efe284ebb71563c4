"""The rules that turn a fingerprint into a plan. docs/planning.md has the source of each."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from networks.registry import Architecture, NetworkConfig, Size
from utils.planning.augmentation import plan_augmentation
from utils.planning.choices import Choice, Plan, Section
from utils.planning.costs import PROGRAM_BYTES, StepCost, step_bytes
from utils.planning.fingerprint import Fingerprint
from utils.planning.grid import (
    LARGEST_VOLUME,
    SMALLEST_VOLUME,
    Spacing,
    Triple,
    Window,
    coarser_spacing,
    coarsest_spacing,
    fit_window,
    make_config,
    native_spacing,
    text,
    wanted_share,
)
from utils.planning.intensities import plan_intensities
from utils.planning.schedule import (
    LONG_VALIDATION,
    MOST_VALIDATIONS,
    STEPS_WITHOUT_HOURS,
    Schedule,
    plan_schedule,
    reading_seconds,
    rounded,
    time_left,
    windows_of_a_scan,
)
from utils.system.errors import InputError

# steps that a run of half an hour should have before its window grows, and before two crops make a step; runs of other
# lengths have as many more as their square root is larger, so that window and steps grow alike (docs/planning.md)
FEWEST_STEPS, FEWEST_STEPS_HOURS = 2_000, 0.5
LARGER_NETWORK = 10  # times as many steps, from which on the network grows as well
ENOUGH = 0.9  # of the fewest steps, since windows grow in steps
FIRST_VOLUME = 48**3  # of the window that is timed first
VOLUME_STEP = 1.25  # from one volume of a window to the next that is tried
WITHOUT_HOURS_VOLUME = 96**3  # of the window, where nothing was timed: that of UNETR's paper
SCANS_SHARE = 0.5  # of the memory that the program leaves, for prepared scans
CROPS_FROM_DISK = 4  # of a scan each time it is read, where memory doesn't hold all scans
FEW_SCANS, FEW_SCANS_RATE = 50, 1e-3  # training scans, up to which the learning rate is at most this
DEFAULT_SIZE = Size({}, 1e-3)  # of a network whose class says nothing

Measure = Callable[[NetworkConfig, int, float], StepCost]


@dataclass(frozen=True)
class Budget:
    """What a training may take.

    Attributes:
        hours: from the start of ``main.py`` to its end; None for a fixed number of steps.
        memory: bytes for the program; on a GPU, of the GPU.
        scans_memory: bytes for the program on the machine around a GPU; None without one, where prepared scans and
            steps share ``memory``.
    """

    hours: float | None
    memory: float
    scans_memory: float | None = None


@dataclass(frozen=True)
class Feed:
    """How scans reach the network.

    Attributes:
        in_memory: whether prepared scans stay in memory.
        crops_per_scan: crops of a scan in a step.
        step_memory: bytes that are left for a step, the program among them.
    """

    in_memory: bool
    crops_per_scan: int
    step_memory: float


@dataclass(frozen=True)
class Network:
    """What is trained, and what a step of it takes.

    Attributes:
        crops: in a step.
        cost: of a step; None if nothing was timed.
    """

    size: Size
    spacing: Spacing
    window: Window
    crops: int
    feed: Feed
    cost: StepCost | None = None


class Planner:
    """Makes a plan.

    Args:
        measure: the cost of a step with a config, so many crops and a learning rate, on this machine.
    """

    def __init__(self, fingerprint: Fingerprint, architecture: Architecture, budget: Budget, measure: Measure) -> None:
        self.fingerprint = fingerprint
        self.architecture = architecture
        self.budget = budget
        self.measure = measure
        x, y, z = np.median([scan.body_mm for scan in fingerprint.scans], axis=0)
        self.body_mm: Triple = (float(x), float(y), float(z))
        self.native = native_spacing(fingerprint)
        self.reading = sum(reading_seconds(scan.shape, scan.channels + 1) for scan in fingerprint.scans)
        self.sizes: Sequence[Size] = architecture.declared("sizes", (DEFAULT_SIZE,))
        self.outputs = fingerprint.output.names(fingerprint.labels)
        self.channels = {"in_channels": fingerprint.channels, "out_channels": len(self.outputs)}

    def plan(self) -> Plan:
        """The plan.

        Raises:
            InputError: if the budget is too small for one step, or for one pass over the scans.
        """
        intensities = plan_intensities(self.fingerprint)
        network = self.choose_feed()
        batch = network.crops // network.feed.crops_per_scan
        steps_per_epoch = math.ceil(self.fingerprint.training / batch)
        schedule = plan_schedule(
            self.budget.hours,
            steps_per_epoch,
            self.step_seconds(network),
            self.reading,
            self.validation_seconds(network),
        )
        uses = schedule.epochs * network.feed.crops_per_scan
        return Plan(
            sections=(
                Section("Data", (self.data_choice(network.feed),)),
                Section("Preprocessing", (intensities.choice, self.spacing_choice(network))),
                Section("Network", self.network_choices(network)),
                Section("Augmentation", tuple(plan_augmentation(self.fingerprint, uses))),
                Section("Training", self.training_choices(network, schedule, batch)),
            ),
            questions=(*intensities.questions, *self.questions()),
            remarks=(*intensities.remarks, *self.remarks(network, schedule)),
        )

    def choose_feed(self) -> Network:
        """The network, and where its scans are kept: in memory if they fit beside what a step takes."""
        memory, around_a_gpu = self.budget.memory, self.budget.scans_memory
        network = self.choose_network(Feed(True, 1, memory))
        scans = self.scan_bytes(network)
        feeds = [Feed(False, CROPS_FROM_DISK, memory), Feed(False, 1, memory)]
        if around_a_gpu is not None and scans <= SCANS_SHARE * (around_a_gpu - PROGRAM_BYTES):
            return network
        if around_a_gpu is None and scans <= SCANS_SHARE * (memory - PROGRAM_BYTES):
            feeds.insert(0, Feed(True, 1, memory - scans))
        feed = next((one for one in feeds if self.fits_at_all(self.sizes[0], one.crops_per_scan, one)), feeds[-1])
        return self.choose_network(feed)

    def choose_network(self, feed: Feed) -> Network:
        """Spacing, window, size and crops that fit the memory and leave enough steps in the hours."""
        more_crops = max(2, feed.crops_per_scan)
        if self.budget.hours is None:
            choices = [(size, more_crops) for size in reversed(self.sizes[:2])]
            size, crops = next((one for one in choices if self.fits_at_all(*one, feed)), (self.sizes[0], 1))
            return self.draft(size, crops, feed, self.volume_in_memory(size, crops, feed, WITHOUT_HOURS_VOLUME))
        network = self.choose_window(self.sizes[0], feed)
        for size in self.sizes:
            needed = self.fewest_steps * (1 if size is self.sizes[0] else LARGER_NETWORK)
            larger = dataclasses.replace(network, size=size, crops=more_crops)
            if self.steps(network) < needed or not self.fits(larger):
                break
            larger = self.timed(larger)
            if self.steps(larger) < needed:
                break
            network = larger
        return network

    def choose_window(self, size: Size, feed: Feed) -> Network:
        """The largest window that fits the memory and leaves enough steps, and the spacing that goes with it."""
        crops = feed.crops_per_scan
        least, largest = self.least_volume(size), self.volume_in_memory(size, crops, feed, LARGEST_VOLUME)

        def network(volume: float) -> Network:
            return self.timed(self.draft(size, crops, feed, volume))

        found = network(min(largest, max(least, FIRST_VOLUME)))
        while True:
            # a step takes about as long as its window is large, and a small one longer: so the estimate is made again
            volume = min(largest, max(least, math.prod(found.window) * self.steps(found) / self.fewest_steps))
            larger = network(volume)
            while volume > least and not self.is_enough(larger):
                volume = max(least, volume / VOLUME_STEP)
                larger = network(volume)
            if math.prod(larger.window) <= math.prod(found.window):
                return found if self.is_enough(found) else larger
            found = larger

    def is_enough(self, network: Network) -> bool:
        """Whether the hours leave about as many steps as they should, and a step fits into the memory."""
        return self.steps(network) >= ENOUGH * self.fewest_steps and self.fits(network)

    @property
    def fewest_steps(self) -> float:
        """Steps that the hours should have before the window grows: at least for one pass over the scans."""
        assert self.budget.hours is not None
        return max(FEWEST_STEPS * math.sqrt(self.budget.hours / FEWEST_STEPS_HOURS), self.fingerprint.training / ENOUGH)

    def window(self, size: Size, spacing: Triple, volume: float) -> Window:
        """The window of at most ``volume`` voxels, or the network's smallest."""
        settings = {**self.channels, **size.settings}
        return fit_window(self.architecture, settings, spacing, self.body_mm, volume)

    def least_volume(self, size: Size) -> float:
        """The smallest volume of a window that is worth a try."""
        return max(SMALLEST_VOLUME, math.prod(self.window(size, self.native.mm, SMALLEST_VOLUME)))

    def draft(self, size: Size, crops: int, feed: Feed, volume: float) -> Network:
        """The network with a window of at most ``volume`` voxels and the spacing that goes with it."""
        steps = STEPS_WITHOUT_HOURS if self.budget.hours is None else self.fewest_steps
        wanted = wanted_share(steps * crops)
        spacing = coarser_spacing(self.native, self.body_mm, volume, coarsest_spacing(self.fingerprint), wanted)
        return Network(size, spacing, self.window(size, spacing.mm, volume), crops, feed)

    def config(self, network: Network) -> NetworkConfig:
        """What the network is built from."""
        settings = {**self.channels, **network.size.settings}
        return make_config(self.architecture, settings, network.spacing.mm, network.window)

    def volume_in_memory(self, size: Size, crops: int, feed: Feed, most: float) -> float:
        """The largest volume of a window, up to ``most``, with which a step fits into the memory.

        Raises:
            InputError: if none does.
        """
        least = self.least_volume(size)
        smallest = self.draft(size, crops, feed, least)
        if not self.fits(smallest):
            needed = math.ceil(1.05 * self.step_bytes(smallest) / 1e8) / 10
            raise InputError(
                f"`memory` {self.budget.memory / 1e9:.3g}: too little for {self.architecture.name}, whose smallest "
                f"step takes about {needed:g} GB, with the program. Give `memory` {needed:g} or more."
            )
        volume = max(least, most)
        while not self.fits(network := self.draft(size, crops, feed, volume)):
            # what a step takes beside the program grows about as its window
            share = (feed.step_memory - PROGRAM_BYTES) / (self.step_bytes(network) - PROGRAM_BYTES)
            volume = max(least, min(volume, math.prod(network.window)) * min(share, 1 / VOLUME_STEP))
        return volume

    def fits_at_all(self, size: Size, crops: int, feed: Feed) -> bool:
        """Whether a step with the smallest window fits into the memory."""
        return self.fits(self.draft(size, crops, feed, self.least_volume(size)))

    def fits(self, network: Network) -> bool:
        """Whether a step fits into the memory."""
        return self.step_bytes(network) <= network.feed.step_memory

    def step_bytes(self, network: Network) -> float:
        """The memory that a step takes, with the program."""
        return step_bytes(self.architecture, self.config(network), network.crops)

    def timed(self, network: Network) -> Network:
        """The network with the cost of a step, its seconds on a coarse grid."""
        cost = self.measure(self.config(network), network.crops, network.size.optim_lr)
        cost = StepCost(rounded(cost.step_seconds), rounded(cost.window_seconds), cost.amp)
        return dataclasses.replace(network, cost=cost)

    def steps(self, network: Network) -> float:
        """How many steps the hours leave time for."""
        assert self.budget.hours is not None
        seconds, _ = time_left(self.budget.hours, self.reading, self.validation_seconds(network))
        return seconds / self.step_seconds(network)

    def step_seconds(self, network: Network) -> float:
        """How long a step takes, with the scans that are read for it; 0 if nothing was timed."""
        if network.cost is None:
            return 0.0
        reads = 0.0 if network.feed.in_memory else network.crops / network.feed.crops_per_scan
        return network.cost.step_seconds + reads * self.reading / len(self.fingerprint.scans)

    def validation_seconds(self, network: Network) -> float:
        """How long a validation takes; 0 if nothing was timed."""
        if network.cost is None:
            return 0.0
        windows = windows_of_a_scan(self.shape(network.spacing.mm), network.window)
        return self.fingerprint.validation * windows * network.cost.window_seconds

    def shape(self, spacing: Triple) -> Triple:
        """Voxels of the median scan along each axis."""
        x, y, z = (length / mm for length, mm in zip(self.body_mm, spacing, strict=True))
        return x, y, z

    def scan_bytes(self, network: Network) -> float:
        """The memory that all prepared scans take, which are padded to the window."""
        shape = [max(pair) for pair in zip(self.shape(network.spacing.mm), network.window, strict=True)]
        of_a_voxel = 4 * self.fingerprint.channels + 2  # float32, and labels
        of_a_row = 8  # the index of voxels to centre crops on: how many of two kinds, in 32 bits
        return len(self.fingerprint.scans) * (math.prod(shape) * of_a_voxel + shape[0] * shape[1] * of_a_row)

    def data_choice(self, feed: Feed) -> Choice:
        """Channels and classes, or regions, and where prepared scans are kept."""
        is_exclusive = self.fingerprint.output.exclusive
        names = f"the background and {', '.join(self.outputs[1:])}" if is_exclusive else ", ".join(self.outputs)
        settings: dict[str, int | bool] = {**self.channels}
        reason = f"{counted(self.fingerprint.channels, 'image channel')}; {names}."
        if not feed.in_memory:
            settings["use_normal_dataset"] = True
            reason += (
                " The memory doesn't hold all scans beside a step, so each is read again for every "
                f"{counted(feed.crops_per_scan, 'crop')}."
            )
        return Choice(settings, reason)

    def spacing_choice(self, network: Network) -> Choice:
        """Size of a voxel."""
        settings = dict(zip(("space_x", "space_y", "space_z"), network.spacing.mm, strict=True))
        return Choice(settings, network.spacing.reason)

    def network_choices(self, network: Network) -> tuple[Choice, ...]:
        """The network, its window and its number format."""
        number = [dict(size.settings) for size in self.sizes].index(dict(network.size.settings)) + 1
        lengths = [edge * mm for edge, mm in zip(network.window, network.spacing.mm, strict=True)]
        inside = (min(1.0, edge / full) for edge, full in zip(lengths, self.body_mm, strict=True))
        share = math.prod(inside)  # a window may be longer than the scan
        if network.cost is None:
            why_size = "the default without `hours`."
            why_window = f"the largest up to {WITHOUT_HOURS_VOLUME:,} voxels that fits the scan and the memory."
        else:
            limit = (
                f"a larger one leaves fewer than {LARGER_NETWORK * self.fewest_steps:,.0f} steps, or needs more memory."
            )
            why_size = "the largest." if number == len(self.sizes) else limit
            why_window = (
                f"the largest up to {LARGEST_VOLUME:,} voxels that fits the scan and the memory and leaves about "
                f"{self.fewest_steps:,.0f} steps in the time."
                if self.steps(network) >= ENOUGH * self.fewest_steps
                else f"the smallest, and still the time leaves fewer than {self.fewest_steps:,.0f} steps. Give more "
                "`hours`."
            )
        file = self.architecture.file
        which_size = f"Size {number} of {len(self.sizes)}: {why_size}" if len(self.sizes) > 1 else "Its only size."
        choices = [
            Choice(
                # a recipe is used in whatever folder
                {
                    "model_name": self.architecture.name if file is None else os.path.abspath(file),
                    **network.size.settings,
                },
                which_size,
            ),
            Choice(
                dict(zip(("roi_x", "roi_y", "roi_z"), network.window, strict=True)),
                f"A window of {text(lengths)} mm, {share:.0%} of the median scan, whose body takes "
                f"{text(self.body_mm)} mm: {why_window}",
            ),
        ]
        if network.cost is not None and not network.cost.amp:
            choices.append(Choice({"noamp": True}, "Mixed precision was slower on this machine."))
        return tuple(choices)

    def training_choices(self, network: Network, schedule: Schedule, batch: int) -> tuple[Choice, ...]:
        """Batch, learning rate, epochs, validations."""
        why = (
            f"A step takes {self.step_seconds(network):.2g} s on this machine, which leaves {schedule.steps:,} steps "
            f"in {self.budget.hours:g} hours."
            if network.cost is not None
            else f"About {schedule.steps:,} steps, a tenth of nnU-Net's; `hours` fits them to the time there is."
        )
        why_rate = "The rate for this size of the network (docs/planning.md)."
        if self.rate(network.size) < network.size.optim_lr:
            why_rate = (
                f"Higher ones make the network learn {self.fingerprint.training} scans by heart (docs/planning.md)."
            )
        return (
            Choice(
                {"batch_size": batch, "crops_per_scan": network.feed.crops_per_scan},
                f"{counted(network.crops, 'crop')} in a step.",
            ),
            Choice({"optim_lr": self.rate(network.size)}, why_rate),
            Choice({"max_epochs": schedule.epochs, "warmup_epochs": schedule.warmup_epochs}, why),
            Choice(
                {"val_every": schedule.val_every},
                f"{MOST_VALIDATIONS} validations in the run."
                if network.cost is None
                else "So that validations take a tenth of the time, or there is one at the end.",
            ),
            Choice({"save_checkpoint": True}, "Keeps the weights, without which a run leaves nothing to use."),
        )

    def rate(self, size: Size) -> float:
        """The learning rate for a size of the network, and a lower one for few scans."""
        return min(size.optim_lr, FEW_SCANS_RATE) if self.fingerprint.training < FEW_SCANS else size.optim_lr

    def remarks(self, network: Network, schedule: Schedule) -> list[str]:
        """What a person should know of the plan."""
        steps, validation = schedule.steps * self.step_seconds(network), self.validation_seconds(network)
        if validation <= LONG_VALIDATION * steps:
            return []
        return [
            f"A single validation takes about {validation:.0f} s, and all steps together {steps:.0f} s. Give more "
            "`hours`, or let fewer scans validate."
        ]

    def questions(self) -> list[str]:
        """What the scans don't tell."""
        found = []
        if not self.fingerprint.labels_are_named:
            found.append(
                "What are the labels called? Names make tables readable, and tell left from right. Remove "
                "dataset_0.json … and plan again with `labels` background,liver,…; or give the names under "
                '"labels" in each data list, as in {"0": "background", "1": "liver"}, and plan again.'
            )
        for value, name in list(enumerate(self.fingerprint.labels))[1:]:
            without = sum(
                value not in scan.structures and value not in self.fingerprint.not_annotated.get(scan.name, ())
                for scan in self.fingerprint.scans
            )
            if without:
                found.append(
                    f"{without} of {len(self.fingerprint.scans)} scans have no {name}. Is it absent there, or was it "
                    'not drawn? Training takes it to be absent, unless the entry\'s "not_annotated" names it.'
                )
        return found


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'s' * (number != 1)}"
