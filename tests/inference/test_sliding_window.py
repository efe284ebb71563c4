"""Sliding windows: means over networks and mirrored passes, skipped windows, and too little GPU memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from networks.precision import Precision
from utils.data.channels import Region, RegionChannels
from utils.data.mirroring import Mirroring, mirrorings
from utils.inference.sliding_window import Ensemble, Predictor
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
    """Predicts label 1 in the half of the window toward the Right (high x), whatever the scan shows."""

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


@pytest.mark.parametrize(("shape", "count"), [((32, 32, 32), 1), ((10, 48, 33), 4), ((64, 40, 16), 6)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_progress_counts_every_window(shape: tuple[int, int, int], count: int, batch_size: int) -> None:
    """With windows of 32 that overlap by a half: 48 voxels take 2, 33 take 2, 64 take 3, 40 take 2."""
    predictor = Predictor((32, 32, 32), 0.0, 0.5, batch_size, CPU.device)
    done: list[int] = []
    probabilities = predictor(Ensemble(((Constant(0.0, 1.0), CPU),)), torch.zeros(1, 1, *shape), done.append)
    assert probabilities.shape == (2, *shape)
    assert len(predictor.windows(shape)) == count == sum(done)


class Ramps(nn.Module):
    """Logits that depend on the voxel and on its position in the window, as a network's do."""

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
def test_overlapping_windows_are_averaged_as_by_monai(
    shape: tuple[int, int, int], overlap: float, batch_size: int, layout: torch.memory_format
) -> None:
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    predictor = Predictor((16, 16, 8), 0.25, overlap, batch_size, CPU.device)
    probabilities = predictor(Ensemble(((Ramps(layout), CPU),)), image)
    logits = sliding_window_inference(image, (16, 16, 8), 1, Ramps(), overlap, mode="gaussian", cval=0.25)
    torch.testing.assert_close(probabilities, logits[0].softmax(0), rtol=0, atol=1e-6)


class Everywhere(nn.Module):
    """Predicts label 1 everywhere, and counts its windows."""

    windows = 0

    def forward(self, windows: Tensor) -> Tensor:
        self.windows += len(windows)
        return torch.cat([torch.zeros_like(windows), windows + 2], 1)


def test_windows_of_air_are_skipped_which_changes_air_alone() -> None:
    """Five windows of 8 along x, from 0, 4, 8, 12 and 16; tissue from 1 to 6, and a voxel at 15."""
    image = torch.zeros(1, 1, 24, 8, 8)
    image[..., 1:7, 2:5, 2:5] = 1
    image[..., 15, 3, 3] = 0.5
    network = Everywhere()
    whole = Predictor((8, 8, 8), -1.0, 0.5, 1, CPU.device)(Ensemble(((network, CPU),)), image)
    assert network.windows == 5
    done: list[int] = []
    network = Everywhere()
    predictor = Predictor((8, 8, 8), 0.0, 0.5, 1, CPU.device)
    found = predictor(Ensemble(((network, CPU),)), image, done.append)
    assert (network.windows, sum(done)) == (5, 5)  # the window from 16 on is touched by tissue at 15
    torch.testing.assert_close(found, whole)
    image[..., 15, 3, 3] = 0
    network = Everywhere()
    found = predictor(Ensemble(((network, CPU),)), image)
    assert network.windows == 2  # the windows from 0 and from 4
    assert found[0, 12:].eq(1).all()
    torch.testing.assert_close(found[:, :12], whole[:, :12])
    # no tissue touches what was skipped
    assert not F.max_pool3d(image, 3, 1, 1)[0, 0, 12:].any()


def test_a_scan_of_air_is_predicted_in_one_window() -> None:
    network = Everywhere()
    found = Predictor((8, 8, 8), 0.0, 0.5, 1, CPU.device)(Ensemble(((network, CPU),)), torch.zeros(1, 1, 24, 8, 8))
    assert network.windows == 1
    assert found.shape == (2, 24, 8, 8)


class LittleMemory(nn.Module):
    """Runs out of memory with more than ``most`` windows at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, windows: Tensor) -> Tensor:
        if windows.shape[0] > self.most:
            raise torch.OutOfMemoryError("no memory")
        return torch.stack([windows[:, 0], 1 - windows[:, 0]], 1)


def test_with_little_memory_the_batch_shrinks_and_stays_small() -> None:
    said: list[str] = []
    predictor = Predictor((16, 16, 16), 0.0, 0.5, 8, CPU.device, said.append)
    volume = torch.rand(1, 1, 40, 16, 16)
    expected = Predictor((16, 16, 16), 0.0, 0.5, 1, CPU.device)(Ensemble(((LittleMemory(8), CPU),)), volume)
    small = Ensemble(((LittleMemory(2), CPU),))
    torch.testing.assert_close(predictor(small, volume), expected)
    predictor(small, volume)
    assert said == [f"out of GPU memory: from here on {size} windows at a time" for size in (4, 2)]


def test_progress_starts_over_with_the_windows() -> None:
    done: list[int] = []
    predictor = Predictor((16, 16, 16), 0.0, 0.5, 2, CPU.device, lambda _: None)
    predictor(Ensemble(((LittleMemory(2), CPU), (LittleMemory(1), CPU))), torch.rand(1, 1, 40, 16, 16), done.append)
    assert min(done) < 0  # after the first network's windows
    assert sum(done) == 2 * 4


def test_then_stitching_moves_to_the_cpu_before_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated GPU, whose memory holds one window but not the whole scan."""
    devices: list[str] = []

    def stitch(self: Predictor, *_: Any) -> Tensor:
        devices.append(self.stitching.type)
        if self.stitching.type == "cuda":
            raise torch.OutOfMemoryError("no memory")
        return torch.zeros(2, 16, 16, 16)

    monkeypatch.setattr(Predictor, "_averaged", stitch)
    monkeypatch.setattr(Tensor, "to", lambda self, *_: self)
    said: list[str] = []
    predictor = Predictor((16, 16, 16), 0.0, 0.5, 1, torch.device("cuda", 0), said.append)
    assert predictor(Ensemble(((Constant(0.0, 0.0), CPU),)), torch.zeros(1, 1, 4, 4, 4)).shape == (2, 4, 4, 4)
    assert devices == ["cuda", "cpu"]
    assert said == ["out of GPU memory: from here on windows are averaged on the CPU"]

    def never(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Predictor, "_averaged", never)
    with pytest.raises(InputError, match=r"`device` cuda:0: has no memory for one window of 16 × 16 × 16 voxels"):
        predictor(Ensemble(((Constant(0.0, 0.0), CPU),)), torch.zeros(1, 1, 4, 4, 4))


def test_regions_have_a_probability_each_and_none_where_windows_are_skipped() -> None:
    """The sigmoids of 0, ln 3 and -ln 3 are 1/2, 3/4 and 1/4, and those of two networks are averaged."""
    log_3 = torch.tensor(3.0).log().item()
    ensemble = Ensemble(((Constant(0.0, log_3), CPU), (Constant(-log_3, log_3), CPU)))
    output = RegionChannels((Region("all", (1, 2)), Region("core", (2,))), (1, 2))
    image = torch.zeros(1, 1, 16, 2, 2)
    image[..., :2, :, :] = 1  # the last windows see air alone
    probabilities = Predictor((2, 2, 2), 0.0, 0.0, 1, CPU.device, output=output)(ensemble, image)
    assert probabilities[:, 0, 0, 0].tolist() == pytest.approx([(1 / 2 + 1 / 4) / 2, 3 / 4])
    assert probabilities[:, -1].max() == 0
    assert output.label_map(probabilities)[:, 0, 0].tolist() == [2, 2, 2, 2, *[0] * 12]
