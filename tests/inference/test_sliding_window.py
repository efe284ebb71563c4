"""Windows over a scan: averages over networks and mirrors, how many there are, and what happens without room."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from networks.precision import Precision
from utils.data.mirroring import Mirroring, mirrorings, trained_mirrorings
from utils.inference.sliding_window import Ensemble, Predictor
from utils.phantom import LABELS
from utils.system.errors import InputError

CPU = Precision(torch.device("cpu"), torch.float32)


class Constant(nn.Module):
    """The same logits everywhere."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, windows: Tensor) -> Tensor:
        return self.logits[None, :, None, None, None].expand(windows.shape[0], -1, *windows.shape[2:])


class RightHalf(nn.Module):
    """Sees label 1 in the half of the window that is toward the Right (high x), and nothing else, whatever is there."""

    def forward(self, windows: Tensor) -> Tensor:
        logits = torch.zeros(windows.shape[0], 3, *windows.shape[2:])
        logits[:, 1, windows.shape[2] // 2 :] = 50
        return logits


def test_probabilities_of_networks_are_averaged() -> None:
    """softmax(0, ln 3) is (1/4, 3/4) and softmax(0, 0) is (1/2, 1/2): on average (3/8, 5/8)."""
    ensemble = Ensemble(((Constant(0.0, torch.tensor(3.0).log().item()), CPU), (Constant(0.0, 0.0), CPU)))
    probabilities = Predictor((2, 2, 2), 0.0, 0.5, 1, CPU.device)(ensemble, torch.ones(1, 1, 2, 2, 2))
    assert probabilities[:, 0, 0, 0].tolist() == pytest.approx([3 / 8, 5 / 8])


def test_left_and_right_swap_in_the_mirror_across_x() -> None:
    """In the mirror the right half is on the left, and label 1 there stands for label 2."""
    passes = mirrorings(("background", "right kidney", "left kidney"))
    assert passes[1] == Mirroring((0,), (0, 2, 1))
    ensemble = Ensemble(((RightHalf(), CPU),), passes[:2])
    probabilities = Predictor((4, 2, 2), 0.0, 0.5, 1, CPU.device)(ensemble, torch.ones(1, 1, 4, 2, 2))
    # high x: label 1 in the plain pass, a third of each in the mirrored one; low x: the other way round, label 2
    right, left = probabilities[:, 3, 0, 0].tolist(), probabilities[:, 0, 0, 0].tolist()
    assert right == pytest.approx([1 / 6, 1 / 2 + 1 / 6, 1 / 6], abs=1e-6)
    assert left == pytest.approx([1 / 6, 1 / 6, 1 / 2 + 1 / 6], abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "axes"),
    [
        (LABELS, {0, 1, 2}),  # BTCV: left and right in pairs, and the inferior vena cava has no superior one
        (("background", "liver"), {0, 1, 2}),
        (("background", "left kidney", "spleen"), {1, 2}),  # no right kidney to swap with
        (("background", "anterior", "posterior"), {0, 2}),
        (("background", "upper lobe", "lower lobe"), {0, 1}),
        (("background", "Left Lung", "Right Lung"), {0, 1, 2}),
        (("background", "heart_ventricle_left", "heart_ventricle_right"), {1, 2}),  # whose walls differ
        (("background", "right atrium", "left atrium", "spleen"), {1, 2}),
        (("background", "Left-Lateral-Ventricle", "Right-Lateral-Ventricle"), {0, 1, 2}),
        (("background", "bright spot"), {0, 1, 2}),  # "right" is no word of its own in it
    ],
)
def test_labels_decide_which_axes_are_mirrored(labels: tuple[str, ...], axes: set[int]) -> None:
    passes = mirrorings(labels)
    assert passes[0] == Mirroring()
    assert {axis for one in passes for axis in one.axes} == axes
    assert len(passes) == 2 ** len(axes)
    for one in passes:
        assert (one.classes is not None) == (0 in one.axes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kidney_left", "kidney_right"),
        ("KidneyLeft", "KidneyRight"),
        ("lung_L", "lung_R"),
        ("Rt kidney", "Lt kidney"),
        ("lh-thalamus", "rh-thalamus"),
        ("rkid", "lkid"),
        ("rad", "lad"),
    ],
)
def test_sides_are_known_in_the_ways_in_which_they_are_written(one: str, other: str) -> None:
    mirroring = mirrorings(("background", one, "vertebra L1", "spleen", other))[-1]
    assert (mirroring.axes, mirroring.classes) == ((0, 1, 2), (0, 4, 2, 3, 1))
    assert mirroring.pairs(("background", one, "vertebra L1", "spleen", other)) == [f"{one} with {other}"]


def test_btcvs_kidneys_and_adrenal_glands_swap() -> None:
    order = next(one.classes for one in mirrorings(LABELS) if one.axes == (0,))
    assert order is not None
    assert {(LABELS[a], LABELS[b]) for a, b in enumerate(order) if a < b} == {
        ("right kidney", "left kidney"),
        ("right adrenal gland", "left adrenal gland"),
    }


def test_a_network_is_mirrored_as_its_crops_were() -> None:
    assert trained_mirrorings("anatomical", LABELS) == mirrorings(LABELS)
    published = trained_mirrorings("published", LABELS)
    assert [one.axes for one in published] == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert {one.classes for one in published} == {None}
    assert trained_mirrorings(None, LABELS) == published
    with pytest.raises(InputError, match="crops were not flipped in training"):
        trained_mirrorings("none", LABELS)


@pytest.mark.parametrize(("shape", "count"), [((32, 32, 32), 1), ((10, 48, 33), 4), ((64, 40, 16), 6)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_are_counted_before_they_are_predicted(
    shape: tuple[int, int, int], count: int, batch_size: int
) -> None:
    """With windows of 32 that overlap by a half: 48 voxels take 2, 33 take 2, 64 take 3, 40 take 2."""
    predictor = Predictor((32, 32, 32), 0.0, 0.5, batch_size, CPU.device)
    done: list[int] = []
    probabilities = predictor(Ensemble(((Constant(0.0, 1.0), CPU),)), torch.zeros(1, 1, *shape), done.append)
    assert probabilities.shape == (2, *shape)
    assert len(predictor.windows(shape)) == count == sum(done)


class Ramps(nn.Module):
    """Logits that depend on what is there and on where in the window it is, as a network's do at its borders."""

    def __init__(self, layout: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, windows: Tensor) -> Tensor:
        x, y, z = (torch.linspace(-3, 3, size).reshape(-1, *[1] * (2 - axis)) for axis, size in enumerate((16, 16, 8)))
        logits = torch.cat([windows * x, windows + y, windows.square() * z], 1)
        return logits.contiguous(memory_format=self.layout)


@pytest.mark.parametrize("shape", [(16, 16, 8), (40, 33, 11), (10, 20, 5)])
@pytest.mark.parametrize(("overlap", "batch_size"), [(0.5, 1), (0.25, 3), (0.7, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_overlapping_windows_are_averaged_as_monai_does_it(
    shape: tuple[int, int, int], overlap: float, batch_size: int, layout: torch.memory_format
) -> None:
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    predictor = Predictor((16, 16, 8), 0.25, overlap, batch_size, CPU.device)
    probabilities = predictor(Ensemble(((Ramps(layout), CPU),)), image)
    logits = sliding_window_inference(image, (16, 16, 8), 1, Ramps(), overlap, mode="gaussian", cval=0.25)
    torch.testing.assert_close(probabilities, logits[0].softmax(0), rtol=0, atol=1e-6)


class Everywhere(nn.Module):
    """Sees label 1 wherever it looks, and counts how often it looks."""

    looks = 0

    def forward(self, windows: Tensor) -> Tensor:
        self.looks += len(windows)
        return torch.cat([torch.zeros_like(windows), windows + 2], 1)


def test_windows_of_air_are_left_out_and_change_nothing_but_air() -> None:
    """Five windows of 8 along x, from 0, 4, 8, 12 and 16; tissue from 1 to 6, and a voxel at 15."""
    image = torch.zeros(1, 1, 24, 8, 8)
    image[..., 1:7, 2:5, 2:5] = 1
    image[..., 15, 3, 3] = 0.5
    network = Everywhere()
    whole = Predictor((8, 8, 8), -1.0, 0.5, 1, CPU.device)(Ensemble(((network, CPU),)), image)
    assert network.looks == 5
    done: list[int] = []
    network = Everywhere()
    predictor = Predictor((8, 8, 8), 0.0, 0.5, 1, CPU.device)
    found = predictor(Ensemble(((network, CPU),)), image, done.append)
    assert (network.looks, sum(done)) == (5, 5)  # that from 16 on has a voxel right before it, which is tissue
    torch.testing.assert_close(found, whole)
    image[..., 15, 3, 3] = 0
    network = Everywhere()
    found = predictor(Ensemble(((network, CPU),)), image)
    assert network.looks == 2  # those from 0 and from 4
    assert found[0, 12:].eq(1).all()
    torch.testing.assert_close(found[:, :12], whole[:, :12])
    # nothing that is left out has tissue around it, in any direction
    assert not F.max_pool3d(image, 3, 1, 1)[0, 0, 12:].any()


def test_a_scan_of_nothing_but_air_is_looked_at_once() -> None:
    network = Everywhere()
    found = Predictor((8, 8, 8), 0.0, 0.5, 1, CPU.device)(Ensemble(((network, CPU),)), torch.zeros(1, 1, 24, 8, 8))
    assert network.looks == 1
    assert found.shape == (2, 24, 8, 8)


class LittleRoom(nn.Module):
    """Runs out of memory with more than ``most`` windows at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, windows: Tensor) -> Tensor:
        if windows.shape[0] > self.most:
            raise torch.OutOfMemoryError("no room")
        return torch.stack([windows[:, 0], 1 - windows[:, 0]], 1)


def test_without_room_the_batch_shrinks_and_stays_small() -> None:
    said: list[str] = []
    predictor = Predictor((16, 16, 16), 0.0, 0.5, 8, CPU.device, said.append)
    volume = torch.rand(1, 1, 40, 16, 16)
    roomy = Predictor((16, 16, 16), 0.0, 0.5, 1, CPU.device)(Ensemble(((LittleRoom(8), CPU),)), volume)
    cramped = Ensemble(((LittleRoom(2), CPU),))
    torch.testing.assert_close(predictor(cramped, volume), roomy)
    predictor(cramped, volume)
    assert said == [f"out of GPU memory: from here on --sw_batch_size {size}" for size in (4, 2)]


def test_then_stitching_moves_to_the_cpu_and_only_then_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose memory holds one window but not the whole, simulated: there is none in CI."""
    places: list[str] = []

    def stitch(self: Predictor, *_: Any) -> Tensor:
        places.append(self.stitching.type)
        if self.stitching.type == "cuda":
            raise torch.OutOfMemoryError("no room")
        return torch.zeros(2, 16, 16, 16)

    monkeypatch.setattr(Predictor, "_averaged", stitch)
    monkeypatch.setattr(Tensor, "to", lambda self, *_: self)
    said: list[str] = []
    predictor = Predictor((16, 16, 16), 0.0, 0.5, 1, torch.device("cuda", 0), said.append)
    assert predictor(Ensemble(((Constant(0.0, 0.0), CPU),)), torch.zeros(1, 1, 4, 4, 4)).shape == (2, 4, 4, 4)
    assert places == ["cuda", "cpu"]
    assert said == ["out of GPU memory: from here on windows are put together on the CPU"]

    def never(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Predictor, "_averaged", never)
    with pytest.raises(InputError, match=r"--device cuda:0: has no room for one window of 16 × 16 × 16 voxels"):
        predictor(Ensemble(((Constant(0.0, 0.0), CPU),)), torch.zeros(1, 1, 4, 4, 4))
