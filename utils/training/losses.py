"""The losses that training can minimise."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from monai.losses import DiceFocalLoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor, nn

from utils.data.channels import CLASSES, Channels
from utils.io.scan import IGNORED
from utils.training.dice_ce import dice_ce

# of logits (B, classes, D, H, W) and the label (B, 1, D, H, W); of regions, of logits and target (B, regions, D, H, W)
VoxelLoss = Callable[[Tensor, Tensor], Tensor]
NotAnnotated = Sequence[Sequence[int]]  # for each sample the classes that nobody drew; empty if all are drawn in all


class Loss(Protocol):
    """A loss of partly annotated samples."""

    def __call__(self, logits: Any, label: Tensor, not_annotated: NotAnnotated = (), /) -> Tensor:
        """A scalar, of logits (B, channels, D, H, W), or a list of them with deep supervision, and (B, 1, D, H, W)."""


def reconstruction_loss(
    found: tuple[Tensor, Tensor, Tensor], label: Tensor, not_annotated: NotAnnotated = ()
) -> Tensor:
    """The mean squared error of the hidden patches that a masked autoencoder reconstructs; labels play no part."""
    reconstructed, patches, hidden = found  # (B, N, p³ · C) twice, (B, N)
    return F.mse_loss(reconstructed[hidden].float(), patches[hidden].float())


def build_loss(
    name: str, smooth_nr: float, smooth_dr: float, deep_supervision: bool, output: Channels = CLASSES
) -> Loss:
    """Build a loss of :data:`LOSSES`, or, if the channels are regions, of :data:`REGION_LOSSES`.

    Args:
        smooth_nr: added to the numerator of the Dice or Tversky index.
        smooth_dr: added to its denominator.
        deep_supervision: whether the network gives logits at several resolutions.
        output: what the channels of the network's output are.
    """
    losses = LOSSES if output.exclusive else REGION_LOSSES
    loss = of_what_is_annotated(losses[name](smooth_nr, smooth_dr), output)
    return at_each_resolution(loss) if deep_supervision else loss


def of_what_is_annotated(loss: VoxelLoss, output: Channels = CLASSES) -> Loss:
    """A loss that leaves out what nobody annotated.

    A voxel labelled background may belong to a structure that wasn't drawn. So the probability of these structures is
    added to that of the background, and the sum is learned (the marginal loss of Shi et al. 2021, Medical Image
    Analysis 70, "Marginal loss and exclusion loss for partially supervised multi-organ segmentation"). A region with a
    label that wasn't drawn is left out. Voxels with :data:`IGNORED` are taken out of a sample, which is then a row of
    the others.

    Each sample counts the same.
    """

    def mean_over_samples(logits: Tensor, label: Tensor, not_annotated: NotAnnotated = ()) -> Tensor:
        partly = [number for number, classes in enumerate(not_annotated) if classes]
        if label.dtype != torch.uint8:  # which can't hold IGNORED
            partly += (label == IGNORED).flatten(1).any(1).nonzero().flatten().tolist()
        if not partly:
            return loss(*output.target(logits, label, ()))
        whole = [number for number in range(len(label)) if number not in partly]
        losses = [len(whole) * loss(*output.target(logits[whole], label[whole], ()))] if whole else []
        for number in sorted(set(partly)):
            sample = slice(number, number + 1)
            classes = not_annotated[number] if not_annotated else ()
            losses.append(_loss_of_a_sample(loss, *output.target(logits[sample], label[sample], classes)))
        return torch.stack(losses).sum() / len(label)

    return mean_over_samples


def _loss_of_a_sample(loss: VoxelLoss, logits: Tensor, target: Tensor) -> Tensor:
    """The loss of what is annotated in one sample, whose target has :data:`IGNORED` where nobody judged the voxel."""
    if target.shape[1]:
        judged = (target[:, 0] != IGNORED).flatten()
        if not judged.all():
            # (1, channels, D, H, W) -> (1, channels, n, 1, 1)
            logits, target = (volume.flatten(2)[:, :, judged, None, None] for volume in (logits, target))
    return loss(logits, target) if target.numel() else 0 * logits.sum()


def at_each_resolution(loss: Loss) -> Loss:
    """A loss for logits at full, half, quarter … resolution, each against the label at that resolution.

    Their weights are 1, 1/2, 1/4 …, divided by the sum of these (Isensee et al. 2021, nnU-Net), so that the same
    learning rate suits any number of resolutions. A coarser voxel has the label at its centre. MONAI's
    ``DeepSupervisionLoss`` computes the same, and synchronises with the GPU in every step.
    """

    def weighted_mean(logits: list[Tensor], label: Tensor, not_annotated: NotAnnotated = ()) -> Tensor:
        if label.dtype != torch.uint8:  # of integers torch interpolates bytes alone; float32 is exact for any label
            label = label.float()
        weights = [0.5**level for level in range(len(logits))]
        first, *coarser = logits
        losses = [loss(first, label, not_annotated)]
        for one in coarser:
            losses.append(loss(one, F.interpolate(label, one.shape[2:], mode="nearest-exact"), not_annotated))
        total: Tensor = sum(weight * one for weight, one in zip(weights, losses, strict=True))  # type: ignore[assignment]
        return total / sum(weights)

    return weighted_mean


def dice_bce(logits: Tensor, target: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
    """Soft Dice loss plus binary cross-entropy of regions, which may overlap: nnU-Net's ``DC_and_BCE_loss`` plus 1.

    For each sample and region the Dice loss is 1 - (2 Σ p y + smooth_nr) / (Σ p + Σ y + smooth_dr), summed over the
    sample's voxels, where p is the sigmoid of the logit and y is 1 inside the region. Its mean over samples and regions
    is added to the mean binary cross-entropy over voxels and regions.

    Args:
        logits: (B, regions, D, H, W) in any format; the loss is computed in float32.
        target: the same shape, 0 and 1, of any dtype.

    Returns:
        A scalar in float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        values, y = logits.float().flatten(2), target.flatten(2).float()
        p = values.sigmoid()
        dice = (2 * (p * y).sum(2) + smooth_nr) / (p.sum(2) + y.sum(2) + smooth_dr)
        return (1 - dice).mean() + F.binary_cross_entropy_with_logits(values, y)


def _from_monai(kind: type[nn.Module], **options: Any) -> Callable[[float, float], VoxelLoss]:
    """How to build a loss of MONAI that is computed in float32, also under autocast."""

    def build(smooth_nr: float, smooth_dr: float) -> VoxelLoss:
        loss = kind(smooth_nr=smooth_nr, smooth_dr=smooth_dr, **options)

        def in_float32(logits: Tensor, label: Tensor) -> Tensor:
            with torch.autocast(logits.device.type, enabled=False):
                value: Tensor = loss(logits.float(), label)
                return value

        return in_float32

    return build


SOFTMAX = {"to_onehot_y": True, "softmax": True}
SIGMOID = {"sigmoid": True}
TVERSKY = {"alpha": 0.3, "beta": 0.7}  # a missed voxel costs more (Salehi et al. 2017)

# by name, how to build a loss from smooth_nr and smooth_dr; the Dice term is the same in dice_ce, dice_focal and dice
LOSSES: Mapping[str, Callable[[float, float], VoxelLoss]] = {
    "dice_ce": lambda smooth_nr, smooth_dr: partial(dice_ce, smooth_nr=smooth_nr, smooth_dr=smooth_dr),
    # focal: gamma 2, a sigmoid for each class
    "dice_focal": _from_monai(DiceFocalLoss, squared_pred=True, **SOFTMAX),
    # a class counts by 1 / (its voxels)² (Sudre et al. 2017)
    "generalized_dice": _from_monai(GeneralizedDiceLoss, **SOFTMAX),
    "tversky": _from_monai(TverskyLoss, **TVERSKY, **SOFTMAX),
    "dice": _from_monai(DiceLoss, squared_pred=True, **SOFTMAX),
}
# the same of regions; their Dice term is nnU-Net's, without squares
REGION_LOSSES: Mapping[str, Callable[[float, float], VoxelLoss]] = {
    "dice_ce": lambda smooth_nr, smooth_dr: partial(dice_bce, smooth_nr=smooth_nr, smooth_dr=smooth_dr),
    "dice_focal": _from_monai(DiceFocalLoss, **SIGMOID),
    "generalized_dice": _from_monai(GeneralizedDiceLoss, **SIGMOID),
    "tversky": _from_monai(TverskyLoss, **TVERSKY, **SIGMOID),
    "dice": _from_monai(DiceLoss, **SIGMOID),
}
