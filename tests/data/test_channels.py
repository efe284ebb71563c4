"""What channels mean, compared with nnU-Net on numbers that its own code gave (version 2.8.1)."""

import pytest
import torch
from torch import Tensor

from utils.data.channels import CERTAIN, CLASSES, Region, RegionChannels
from utils.data.mirroring import Mirroring
from utils.system.errors import InputError

BRATS = RegionChannels(
    (Region("whole tumor", (1, 2, 3)), Region("tumor core", (2, 3)), Region("enhancing tumor", (3,))), (1, 2, 3)
)
KITS = RegionChannels((Region("kidney", (1, 2, 3)), Region("masses", (2, 3)), Region("tumor", (2,))), (1, 3, 2))
# a row for each region, a column for each of six voxels
LOGITS = torch.tensor([[-2, 2, 1, 3, -1, -0.5], [-1, -1, 0.5, 2, 1, -1.5], [-3, -1, -0.5, 1, -2, 0.25]])
LABEL = torch.tensor([0, 1, 2, 3, 0, 1])


def volume(voxels: Tensor) -> Tensor:
    """(channels, 6) or (6,) -> (1, channels, 6, 1, 1)."""
    return voxels.reshape(1, -1, 6, 1, 1)


@pytest.mark.parametrize(("output", "expected"), [(BRATS, [0, 1, 2, 3, 2, 3]), (KITS, [0, 1, 3, 2, 3, 2])])
def test_labels_of_regions_are_those_of_nnunet(output: RegionChannels, expected: list[int]) -> None:
    """``LabelManager.convert_logits_to_segmentation``. In the fifth voxel there is a core without a whole tumour."""
    probabilities = output.probabilities(volume(LOGITS)[0])
    assert output.label_map(probabilities).flatten().tolist() == expected
    assert probabilities[0].flatten().tolist() == pytest.approx(
        [0.1192029, 0.8807971, 0.7310586, 0.9525741, 0.2689414, 0.3775407], abs=1e-6
    )


def test_a_probability_of_one_half_is_outside() -> None:
    assert BRATS.label_map(torch.full((3, 1, 1, 1), 0.5)).item() == 0


def test_the_target_says_which_voxels_are_in_each_region() -> None:
    label = LABEL.clone()
    label[4] = -1  # nobody judged it
    logits, target = BRATS.target(volume(LOGITS), volume(label), ())
    assert target[0, :, :, 0, 0].tolist() == [[0, 1, 1, 1, -1, 1], [0, 0, 1, 1, -1, 0], [0, 0, 0, 1, -1, 0]]
    assert target.shape == logits.shape


def test_a_region_with_a_label_that_nobody_drew_is_no_target() -> None:
    logits, target = KITS.target(volume(LOGITS), volume(LABEL), (3,))
    assert logits[0, :, :, 0, 0].tolist() == LOGITS[2:].tolist()
    assert target[0, :, :, 0, 0].tolist() == [[0, 0, 1, 0, 0, 0]]
    nothing, of_nothing = KITS.target(volume(LOGITS), volume(LABEL), (2,))
    assert (nothing.shape[1], of_nothing.shape[1]) == (0, 0)


def test_background_is_certain_where_it_is_made() -> None:
    where = torch.tensor([True, False]).reshape(2, 1, 1)
    for output, channels in ((BRATS, 3), (CLASSES, 4)):
        logits = torch.zeros(channels, 2, 1, 1)
        output.make_background(logits, where)
        probabilities = output.probabilities(logits)[:, 0, 0, 0]
        assert probabilities.tolist() == [output.outside(channel) for channel in range(channels)]
        assert not logits[:, 1].any()
    assert CERTAIN > 0


def test_mirrored_regions_are_the_regions_of_mirrored_labels() -> None:
    left, right, both = Region("left lung", (1, 2)), Region("right lung", (3, 4)), Region("lungs", (1, 2, 3, 4))
    swap = Mirroring((0,), (0, 3, 4, 1, 2))
    output = RegionChannels((both, left, right), (1, 2, 3))
    assert output.mirrored(swap) == Mirroring((0,), (0, 2, 1))
    assert output.mirrored(Mirroring((1,))) == Mirroring((1,))
    assert CLASSES.mirrored(swap) == swap
    with pytest.raises(InputError, match="`tta`: the mirror image of the region 'left lung' is none of"):
        RegionChannels((both, left), (3, 1)).mirrored(swap)
