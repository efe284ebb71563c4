"""The peer's side of the comparisons: MONAI's UNETR, trained as MONAI's tutorials do it.

On a CPU it computes in float32. On a GPU it uses float16 autocast with a scaled loss, as in 2021.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from monai import transforms
from monai.data import CacheDataset
from monai.losses import DiceCELoss
from monai.networks import nets
from torch import Tensor, nn

from networks.unetr import UNETRConfig
from utils.data.crops import Augmentation
from utils.data.preprocessing import KEYS, Preprocessing
from utils.io.scan import Scan
from utils.system.errors import InputError

CROPS_PER_SCAN = 4
ENCODER_PARTS = ("rotary", "swiglu", "attn_norm", "qv_bias", "layer_scale")


def peers_network(options: Mapping[str, Any] | None = None, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """MONAI's UNETR.

    Args:
        options: the settings of our network, by default those of the reference network.
        weights: the weights of our network, by default random ones.

    Raises:
        InputError: if MONAI can't build such a network.
    """
    theirs = dict(asdict(UNETRConfig()) if options is None else options)
    if theirs.pop("patch_size", 16) != 16:
        raise InputError("MONAI's UNETR has patches of 16 voxels only. Give weights of such a network.")
    if theirs.pop("conv_stem", False):
        raise InputError("MONAI's UNETR has no convolutional stem. Give weights of a network without one.")
    if any(theirs.pop(name, False) for name in ENCODER_PARTS):
        raise InputError("MONAI's UNETR has a plain ViT. Give weights of a network with one.")
    for ours_only in ("halve_by_spacing", "drop_path_rate", "deep_supervision", "spacing", "scaled_init"):
        theirs.pop(ours_only, None)
    network = nets.UNETR(proj_type=theirs.pop("pos_embed"), **theirs)
    if weights is not None:
        # all but the outputs of deep supervision, which MONAI's network lacks
        known = {name: tensor for name, tensor in weights.items() if not name.startswith("coarse_outs.")}
        # MONAI's blocks also own tensors that no forward pass reads; they keep their random values
        network.load_state_dict({**network.state_dict(), **known})
    return network


def peers_loss() -> nn.Module:
    """MONAI's Dice and cross-entropy loss, for logits and integer labels."""
    return DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6)


def peers_step(device: torch.device) -> Callable[[Tensor, Tensor], object]:
    """A training step on a batch of images and labels."""
    network = peers_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-5)
    loss_function = peers_loss()
    on_gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    def step(image: Tensor, label: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            loss = loss_function(network(image), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def peers_crops(scans: Sequence[Scan], settings: Preprocessing) -> CacheDataset:
    """The training crops of 2021, with its transforms in its order. Preprocessed scans are cached in memory."""
    fixed = [
        transforms.LoadImaged(KEYS, ensure_channel_first=True),
        transforms.Orientationd(KEYS, axcodes="RAS", labels=None),
        transforms.Spacingd(KEYS, pixdim=settings.spacing, mode=("bilinear", "nearest")),
        transforms.ScaleIntensityRanged(
            "image", settings.a_min, settings.a_max, settings.b_min, settings.b_max, clip=True
        ),
        transforms.CropForegroundd(KEYS, source_key="image", allow_smaller=True),
    ]
    augmentation = Augmentation()
    random = [
        transforms.RandCropByPosNegLabeld(
            KEYS, label_key="label", spatial_size=settings.roi, pos=1, neg=1, num_samples=CROPS_PER_SCAN,
            image_key="image", image_threshold=0,
        ),
        *(transforms.RandFlipd(KEYS, prob=augmentation.flip, spatial_axis=axis) for axis in range(3)),
        transforms.RandRotate90d(KEYS, prob=augmentation.rotate90, max_k=3),
        transforms.RandScaleIntensityd("image", factors=0.1, prob=augmentation.scale_intensity),
        transforms.RandShiftIntensityd("image", offsets=0.1, prob=augmentation.shift_intensity),
        transforms.ToTensord(KEYS),
    ]  # fmt: skip
    items = [{"image": str(scan.image[0]), "label": str(scan.label)} for scan in scans]
    return CacheDataset(items, transforms.Compose([*fixed, *random]), progress=False, num_workers=2)
