"""UNETR (Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", arXiv 2103.10504)."""

from collections.abc import Sequence

from monai.networks.blocks import UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from networks.layers.full_precision import OutBlock, ScanBlock
from networks.layers.instance_norm import LAYOUT_KEEPING_INSTANCE
from networks.layers.layout import in_layout_of, with_dense_gradient
from networks.vit import POSITION_EMBEDDINGS, ViT

PATCH_SIZE = 16  # of the published network
NUM_LAYERS = 12
# blocks that skip paths read before the final norm, counted from 0, by patch size: those of the published weights, and
# after each third where patches of 8 voxels leave the decoder one stage less
SKIP_LAYERS = {16: (3, 6, 9), 8: (3, 7)}
PATCH_SIZES = tuple(SKIP_LAYERS)
NORMS = {"instance": LAYOUT_KEEPING_INSTANCE, "batch": "batch"}  # by our names, MONAI's


class UNETR(nn.Module):
    """A ViT encoder, a convolutional decoder, and skip paths from four depths of the one to the other.

    Args:
        in_channels: channels of the volume (1 for CT).
        out_channels: number of classes, the background included.
        img_size: voxels of the volume in each direction; one number stands for all three.
        feature_size: channels at full resolution; doubled at each halving of the resolution.
        hidden_size: length of a token.
        mlp_dim: width of the perceptron in each transformer block.
        num_heads: attention heads; they divide ``hidden_size``.
        pos_embed: ``perceptron`` or ``conv``, how a patch becomes a token.
        norm_name: ``instance`` or ``batch``, the decoder's normalisation (without learned scale for ``instance``).
        conv_block: whether the skip paths convolve after each upsampling.
        res_block: whether the convolution blocks have a residual connection.
        dropout_rate: dropout in the transformer, 0 to 1.
        patch_size: edge of a patch in voxels; 8 shows the transformer small structures, with eight times the tokens.
        drop_path_rate: share of samples for which a residual branch of the last transformer block is left out in
            training; it rises to that from 0 in the first.
        deep_supervision: whether the network in training gives logits at each resolution of its decoder.

    Raises:
        ValueError: if an argument can't make a network; the message names it and says what would do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int] | int,
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        pos_embed: str = "perceptron",
        norm_name: str = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        dropout_rate: float = 0.0,
        patch_size: int = PATCH_SIZE,
        drop_path_rate: float = 0.0,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        size = (img_size,) * 3 if isinstance(img_size, int) else tuple(img_size)
        _check_arguments(
            sizes={
                "in_channels": in_channels,
                "out_channels": out_channels,
                "feature_size": feature_size,
                "hidden_size": hidden_size,
                "mlp_dim": mlp_dim,
                "num_heads": num_heads,
            },
            img_size=size,
            pos_embed=pos_embed,
            norm_name=norm_name,
            dropout_rate=dropout_rate,
            patch_size=patch_size,
            drop_path_rate=drop_path_rate,
        )
        self.img_size = size
        self.patch_size = patch_size
        self.grid = tuple(voxels // patch_size for voxels in size)
        self.skip_layers = SKIP_LAYERS[patch_size]  # torch.jit.script reads attributes, not constants of the module

        self.vit = ViT(
            in_channels=in_channels,
            img_size=size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=NUM_LAYERS,
            num_heads=num_heads,
            pos_embed=pos_embed,
            dropout_rate=dropout_rate,
            drop_path_rate=drop_path_rate,
        )

        def skip_path(channels: int, doublings: int) -> UnetrPrUpBlock:
            return UnetrPrUpBlock(
                spatial_dims=3,
                in_channels=hidden_size,
                out_channels=channels,
                num_layer=doublings,
                kernel_size=3,
                stride=1,
                upsample_kernel_size=2,
                norm_name=NORMS[norm_name],
                conv_block=conv_block,
                res_block=res_block,
            )

        def up_path(channels_in: int, channels_out: int) -> UnetrUpBlock:
            return UnetrUpBlock(
                spatial_dims=3,
                in_channels=channels_in,
                out_channels=channels_out,
                kernel_size=3,
                upsample_kernel_size=2,
                norm_name=NORMS[norm_name],
                res_block=res_block,
            )

        self.encoder1 = ScanBlock(in_channels, feature_size, NORMS[norm_name], res_block)
        halvings = patch_size.bit_length() - 1  # from full resolution to that of the patches
        self.encoder2 = skip_path(feature_size * 2, doublings=halvings - 2)
        self.encoder3 = skip_path(feature_size * 4, doublings=halvings - 3)
        self.encoder4 = skip_path(feature_size * 8, doublings=0) if halvings == 4 else None
        self.decoder5 = up_path(hidden_size, feature_size * 8) if halvings == 4 else None
        self.decoder4 = up_path(feature_size * 8 if halvings == 4 else hidden_size, feature_size * 4)
        self.decoder3 = up_path(feature_size * 4, feature_size * 2)
        self.decoder2 = up_path(feature_size * 2, feature_size)

        def output(channels: int) -> OutBlock:
            return OutBlock(spatial_dims=3, in_channels=channels, out_channels=out_channels)

        self.out = output(feature_size)
        self.coarse_outs = None
        if deep_supervision:  # of decoder3, decoder4 and decoder5
            self.coarse_outs = nn.ModuleList(output(feature_size * 2**level) for level in range(1, halvings))

    def _volume(self, tokens: Tensor) -> Tensor:
        """Put the tokens back where their patches were: (B, N, E) -> (B, E, D / P, H / P, W / P), patches of size P."""
        depth, height, width = self.grid
        return tokens.transpose(1, 2).unflatten(2, (depth, height, width)).contiguous()

    def forward(self, volume: Tensor) -> Tensor | list[Tensor]:
        """(B, in_channels, *img_size) -> logits (B, out_channels, *img_size).

        In training with ``deep_supervision``: a list of these, and of those of each coarser resolution.
        """
        tokens, hidden_states = self.vit(volume)
        skip2 = self.encoder2(self._volume(hidden_states[self.skip_layers[0]]))  # (B, 2F, D / 2, H / 2, W / 2)
        skip3 = self.encoder3(self._volume(hidden_states[self.skip_layers[1]]))  # (B, 4F, D / 4, H / 4, W / 4)
        x = self._volume(tokens)
        stages: list[Tensor] = []
        if self.encoder4 is not None and self.decoder5 is not None:
            skip4 = self.encoder4(self._volume(hidden_states[self.skip_layers[2]]))  # (B, 8F, D / 8, H / 8, W / 8)
            x = self.decoder5(x, with_dense_gradient(skip4))  # (B, 8F, D / 8, H / 8, W / 8)
            stages.append(x)
        x = self.decoder4(x, with_dense_gradient(skip3))  # (B, 4F, D / 4, H / 4, W / 4)
        stages.append(x)
        x = self.decoder3(x, with_dense_gradient(skip2))  # (B, 2F, D / 2, H / 2, W / 2)
        stages.append(x)
        skip1 = self.encoder1(in_layout_of(x, volume))  # (B, F, D, H, W)
        x = self.decoder2(x, with_dense_gradient(skip1))  # (B, F, D, H, W)
        logits = self.out(x)
        if self.coarse_outs is not None and self.training:
            outputs: list[Tensor] = [logits]
            for level, out in enumerate(self.coarse_outs):
                outputs.append(out(stages[-1 - level]))
            return outputs
        return logits


def unetr_steps(patch_size: int) -> tuple[int, ...]:
    """What the edges of a window must be multiples of."""
    return (patch_size,) * 3


def _check_arguments(
    sizes: dict[str, int],
    img_size: tuple[int, ...],
    pos_embed: str,
    norm_name: str,
    dropout_rate: float,
    patch_size: int,
    drop_path_rate: float,
) -> None:
    faults = [f"{name} must be at least 1, not {value}" for name, value in sizes.items() if value < 1]
    if patch_size not in PATCH_SIZES:
        faults.append(f"patch_size must be one of {', '.join(map(str, PATCH_SIZES))}, not {patch_size}")
    elif len(img_size) != 3 or any(voxels < patch_size or voxels % patch_size for voxels in img_size):
        faults.append(f"img_size must be three multiples of {patch_size}, not {' × '.join(map(str, img_size))}")
    if sizes["num_heads"] >= 1 and sizes["hidden_size"] % sizes["num_heads"]:
        faults.append(f"num_heads {sizes['num_heads']} must divide hidden_size {sizes['hidden_size']}")
    if pos_embed not in POSITION_EMBEDDINGS:
        faults.append(f"pos_embed must be one of {', '.join(POSITION_EMBEDDINGS)}, not {pos_embed!r}")
    if norm_name not in NORMS:
        faults.append(f"norm_name must be one of {', '.join(NORMS)}, not {norm_name!r}")
    for name, rate in (("dropout_rate", dropout_rate), ("drop_path_rate", drop_path_rate)):
        if not 0 <= rate < 1:
            faults.append(f"{name} must be at least 0 and below 1, not {rate}")
    if faults:
        raise ValueError("; ".join(faults))
