"""Training from weights of elsewhere."""

import json
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trainer
from tests.conftest import REPOSITORY, Run
from tests.training.test_training import lines

# two channels, three classes: the network of tests/weights/monai070_unetr_perceptron.pt, which MONAI 0.7.0 wrote
NETWORK: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "feature_size": 3,
    "hidden_size": 9,
    "mlp_dim": 16,
    "num_heads": 3,
}
SIZE = (32, 16, 16)
FLAGS = [
    *(f"--{name}={value}" for name, value in NETWORK.items()),
    *(f"--roi_{axis}={voxels}" for axis, voxels in zip("xyz", SIZE, strict=True)),
    *("--space_x=1", "--space_y=1", "--space_z=1", "--intensity=zscore", "--workers=0", "--max_epochs=1"),
    *("--data_dir=.", "--json_list=list.json", "--batch_size=2", "--crops_per_scan=2"),
]


@pytest.fixture
def published(in_tmp: Path, random: np.random.Generator) -> dict[str, Tensor]:
    """Two scans, and ``published.pth`` in the format of the weights of 2021; its content."""
    entries = []
    for number in range(2):
        label = random.integers(0, 3, (36, 20, 20)).astype(np.uint8)
        image = random.normal(label[..., None], 1, (*label.shape, 2)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), f"image{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), f"label{number}.nii.gz")
        entries.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
    Path("list.json").write_text(json.dumps({"training": entries, "validation": entries[:1]}))
    golden = torch.load(REPOSITORY / "tests" / "weights" / "monai070_unetr_perceptron.pt", weights_only=True)
    torch.save(golden["state_dict"], "published.pth")
    state: dict[str, Tensor] = golden["state_dict"]
    return state


@pytest.fixture
def first_batch(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The image and label of the first step, once a training has taken it."""
    seen: list[Tensor] = []
    original = trainer.Learner.loss

    def loss(self: trainer.Learner, image: Tensor, label: Tensor, *more: Any) -> Tensor:
        seen.extend([] if seen else [image.clone(), label.clone()])
        return original(self, image, label, *more)

    monkeypatch.setattr(trainer.Learner, "loss", loss)
    return seen


def dice_and_cross_entropy(logits: Tensor, label: Tensor) -> float:
    """The published loss, from its formulas: Dice with squared predictions, background included, and cross-entropy."""
    classes = label[:, 0].long()  # (B, 1, D, H, W) -> (B, D, H, W)
    truth = F.one_hot(classes, logits.shape[1]).movedim(-1, 1).double()
    predicted = logits.double().softmax(1)
    voxels = (2, 3, 4)
    overlap = (predicted * truth).sum(voxels)
    dice = 1 - 2 * overlap / (predicted.square().sum(voxels) + truth.square().sum(voxels) + 1e-6)
    cross_entropy = -(truth * predicted.log()).sum(1).mean()
    return float(dice.mean() + cross_entropy)


def test_finetuning_starts_at_the_loss_that_the_weights_have(
    run_main: Run, published: dict[str, Tensor], first_batch: list[Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    run_main([*FLAGS, "--noamp", "--resume_ckpt", "--pretrained_dir=.", "--pretrained_model_name=published.pth"])
    assert "published.pth (state dict of MONAI 0.7's UNETR): 170 tensors loaded, 4 that no forward pass reads left" in (
        capsys.readouterr().out
    )
    theirs = monai.networks.nets.UNETR(img_size=SIZE, **NETWORK, proj_type="perceptron").eval()
    theirs.load_state_dict(published, strict=False)
    image, label = first_batch
    with torch.no_grad():
        expected = dice_and_cross_entropy(theirs(image), label)
    found = lines(Path("runs/test"))[0]["loss"]  # the epoch has one step
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_adapting_to_another_task(
    run_main: Run, published: dict[str, Tensor], capsys: pytest.CaptureFixture[str], jit: bool
) -> None:
    start: list[Any] = ["--resume_ckpt", "--pretrained_dir=.", "--pretrained_model_name=published.pth"]
    if jit:
        run_main([*FLAGS, *start, "--save_checkpoint", "--logdir=first"])
        content = torch.load("runs/first/model.pt", weights_only=True)
        network = monai.networks.nets.UNETR(img_size=SIZE, **NETWORK, proj_type="perceptron")
        network.load_state_dict(content["state_dict"], strict=False)
        torch.jit.trace(network.eval(), torch.zeros(1, 2, *SIZE)).save("published.pt")  # type: ignore[no-untyped-call]
        start = ["--resume_jit", "--pretrained_dir=.", "--pretrained_model_name=published.pt"]
    other = [*FLAGS, *start, "--out_channels=4", "--roi_y=32"]
    with pytest.raises(SystemExit):
        run_main(other)
    message = capsys.readouterr().err
    assert "--out_channels is 4, but its weights have 3; --roi_x, --roi_y, --roi_z are 32 × 32 × 16" in message
    assert "Give --adapt_weights to adapt them to the new task" in message
    assert message.count("\n") == 1

    with pytest.raises(SystemExit):  # bare weights don't tell how their 2 patches lay
        run_main([*other, "--adapt_weights"])
    assert "has 2 position embeddings and doesn't tell their window" in capsys.readouterr().err

    run_main([*FLAGS, *start, "--out_channels=4", "--adapt_weights"])
    screen = capsys.readouterr().out
    assert "  loaded    168  as they are\n" in screen
    assert "  new         1  out.conv.conv.weight: 3 classes became 4\n" in screen
    assert ("note: weights from TorchScript train in float32" in screen) == jit


def test_a_checkpoint_of_ours_tells_the_window_that_its_weights_had(
    run_main: Run, published: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--resume_ckpt", "--pretrained_dir=.", "--pretrained_model_name=published.pth"]
    run_main([*FLAGS, *start, "--save_checkpoint", "--logdir=first"])
    again = ["--resume_ckpt", "--pretrained_dir=runs/first", "--pretrained_model_name=model.pt", "--adapt_weights"]
    capsys.readouterr()
    run_main([*FLAGS, *again, "--roi_y=32", "--in_channels=2"])
    screen = capsys.readouterr().out
    assert "weights of runs/first/model.pt (checkpoint after epoch 1)\n" in screen
    assert (
        "  adapted     1  vit.patch_embedding.position_embeddings: interpolated from 2 × 1 × 1 to 2 × 2 × 1 pat"
        in screen
    )
