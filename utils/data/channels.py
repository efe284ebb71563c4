"""What the channels of a network's output mean: labels, of which a voxel has one, or regions, which overlap."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from utils.data.mirroring import Mirroring
from utils.io.scan import IGNORED
from utils.system.errors import InputError

CERTAIN = 1e4  # a logit with probability 1 if all others are 0
PLANES = 4  # of a volume (channels, D, H, W) that are worked on at a time, so few that a CPU's cache holds them
HALF = 0.5  # a region has the voxels in which it is more probable than not


@dataclass(frozen=True)
class Region:
    """A union of labels, such as a whole tumour.

    Attributes:
        labels: their values, in ascending order.
    """

    name: str
    labels: tuple[int, ...]


class Channels(ABC):
    """What the channels of a network's output mean.

    Attributes:
        exclusive: whether each voxel belongs to one channel alone, the background included.
    """

    exclusive: ClassVar[bool]

    @abstractmethod
    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The names of the channels.

        Args:
            labels: names of the values 0, 1, …
        """

    @abstractmethod
    def target(self, logits: Tensor, label: Tensor, not_annotated: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What is learned, and of which logits.

        Args:
            logits: (B, channels, D, H, W).
            label: (B, 1, D, H, W), the values 0, 1, … and :data:`IGNORED`, of any dtype.
            not_annotated: labels that nobody drew in any of these samples.

        Returns:
            Logits and target of what is annotated, with :data:`IGNORED` where nobody judged the voxel.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """(channels, …) -> (channels, …)."""

    @abstractmethod
    def label_map(self, probabilities: Tensor) -> Tensor:
        """(channels, …) -> label values (…)."""

    @abstractmethod
    def probability(self, probabilities: Tensor, labels: Sequence[int]) -> Tensor | None:
        """The probability (…) that a voxel has one of some labels; None if no channel tells.

        Args:
            probabilities: (channels, …).
        """

    @abstractmethod
    def written(self, channels: int) -> list[tuple[int, int]]:
        """The channels that write a label into a mask, in this order, each with its label."""

    @abstractmethod
    def make_background(self, logits: Tensor, where: Tensor) -> None:
        """Make voxels certain background, in place.

        Args:
            logits: (channels, D, H, W), 0 at these voxels.
            where: (D, H, W).
        """

    @abstractmethod
    def outside(self, channel: int) -> float:
        """The probability of a channel where all is background."""

    @abstractmethod
    def mirrored(self, mirroring: Mirroring) -> Mirroring:
        """A mirroring whose labels swap as one whose channels swap.

        Raises:
            InputError: if a region would become one that is no channel.
        """


@dataclass(frozen=True)
class LabelChannels(Channels):
    """A channel for each label, the background first; their probabilities are a softmax."""

    exclusive: ClassVar[bool] = True

    @override
    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(labels)

    @override
    def target(self, logits: Tensor, label: Tensor, not_annotated: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (B, C, D, H, W) and label (B, 1, D, H, W), in which labels that nobody drew are part of class 0.

        What is labelled background may be one of them, and so it is their probabilities' sum that is learned.
        """
        if not not_annotated:
            return logits, label
        classes = logits.shape[1]
        drawn = [value for value in range(1, classes) if value not in not_annotated]
        background = logits[:, [0, *not_annotated]].float().logsumexp(1, keepdim=True)
        new_values = torch.full((classes + 1,), IGNORED, device=label.device)  # IGNORED, -1, is the last one
        new_values[[0, *drawn]] = torch.arange(1 + len(drawn), device=label.device)
        return torch.cat([background, logits[:, drawn].float()], 1), new_values[label.long()]

    @override
    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(0)

    @override
    def label_map(self, probabilities: Tensor) -> Tensor:
        label = torch.empty(probabilities.shape[1:], dtype=torch.int64, device=probabilities.device)
        for part, found in zip(probabilities.split(PLANES, 1), label.split(PLANES), strict=True):
            found.copy_(part.max(0).indices)  # as argmax, which takes three to five times as long on a CPU
        return label

    @override
    def probability(self, probabilities: Tensor, labels: Sequence[int]) -> Tensor | None:
        return probabilities[labels[0]] if len(labels) == 1 else probabilities[list(labels)].sum(0)

    @override
    def written(self, channels: int) -> list[tuple[int, int]]:
        return [(label, label) for label in range(1, channels)]

    @override
    def make_background(self, logits: Tensor, where: Tensor) -> None:
        logits[0].masked_fill_(where, CERTAIN)

    @override
    def outside(self, channel: int) -> float:
        return 1.0 if channel == 0 else 0.0

    @override
    def mirrored(self, mirroring: Mirroring) -> Mirroring:
        return mirroring


CLASSES = LabelChannels()


@dataclass(frozen=True)
class RegionChannels(Channels):
    """A channel for each region; their probabilities are sigmoids, and there is no background (as in nnU-Net).

    Attributes:
        regions: those of the channels.
        order: the label that each writes into a mask, later ones over earlier ones (nnU-Net's
            ``regions_class_order``).
    """

    regions: tuple[Region, ...]
    order: tuple[int, ...]
    exclusive: ClassVar[bool] = False

    @override
    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(region.name for region in self.regions)

    def known(self, not_annotated: Sequence[int]) -> list[int]:
        """The channels of the regions whose labels were all drawn: of the others nobody knows the voxels."""
        unknown = set(not_annotated)
        return [place for place, region in enumerate(self.regions) if not unknown & set(region.labels)]

    @override
    def target(self, logits: Tensor, label: Tensor, not_annotated: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The known regions' logits and whether a voxel is in each, both (B, regions, D, H, W)."""
        known = self.known(not_annotated)
        # a row for each region, a column for each label; IGNORED, -1, is the last one
        is_inside = torch.zeros((len(known), max(self.order) + 2), dtype=torch.int8)
        for row, place in enumerate(known):
            is_inside[row, list(self.regions[place].labels)] = 1
        is_inside[:, -1] = IGNORED
        target = is_inside.to(label.device)[:, label[:, 0].long()].movedim(0, 1)  # (B, regions, D, H, W)
        return (logits if len(known) == len(self.regions) else logits[:, known]), target

    @override
    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    @override
    def label_map(self, probabilities: Tensor) -> Tensor:
        label = torch.zeros(probabilities.shape[1:], dtype=torch.int64, device=probabilities.device)
        for channel, value in self.written(len(probabilities)):
            label.masked_fill_(probabilities[channel] > HALF, value)
        return label

    @override
    def probability(self, probabilities: Tensor, labels: Sequence[int]) -> Tensor | None:
        channels = {region.labels: channel for channel, region in enumerate(self.regions)}
        channel = channels.get(tuple(labels))
        return None if channel is None else probabilities[channel]

    @override
    def written(self, channels: int) -> list[tuple[int, int]]:
        return list(enumerate(self.order))

    @override
    def make_background(self, logits: Tensor, where: Tensor) -> None:
        logits.masked_fill_(where, -CERTAIN)

    @override
    def outside(self, channel: int) -> float:
        return 0.0

    @override
    def mirrored(self, mirroring: Mirroring) -> Mirroring:
        swaps = mirroring.classes
        if swaps is None:
            return mirroring
        place = {region.labels: number for number, region in enumerate(self.regions)}
        partners = [tuple(sorted(swaps[label] for label in region.labels)) for region in self.regions]
        for region, partner in zip(self.regions, partners, strict=True):
            if partner not in place:
                raise InputError(
                    f"`tta`: the mirror image of the region {region.name!r} is none of the network's regions. "
                    "Leave it out."
                )
        return replace(mirroring, classes=tuple(place[partner] for partner in partners))
