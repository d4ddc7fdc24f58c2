"""The decoder of Models Genesis' 3D U-Net."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from densepath.nets.backbones.unet3d import UNet3D, UNetConvolution


class UNet3DDecoder(nn.Module):
    """The expanding path: transposed convolutions that double the resolution, skips, and two convolutions each.

    Its tensors have the names of Models Genesis, ``up_tr256.up_conv`` and so on.

    Args:
        backbone: the encoder, which is not part of the decoder.

    Attributes:
        channels: channels of the result.

    Source: Zhou et al., Models Genesis, MICCAI 2019, as released.
    """

    def __init__(self, backbone: UNet3D) -> None:
        super().__init__()
        channels = backbone.channels
        self.channels = channels[1]
        self.up_tr256 = _Up(channels[4], channels[3])
        self.up_tr128 = _Up(channels[3], channels[2])
        self.up_tr64 = _Up(channels[2], channels[1])

    def forward(self, maps: Mapping[int, Tensor], size: Sequence[int]) -> Tensor:
        """(B, channels, *size) from the maps of the backbone, by stage, for volumes of a size in voxels."""
        x = self.up_tr256(maps[4], maps[3])
        x = self.up_tr128(x, maps[2])
        out: Tensor = self.up_tr64(x, maps[1])
        return out


class _Up(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, in_channels, kernel_size=2, stride=2)
        together = in_channels + out_channels
        self.ops = nn.Sequential(UNetConvolution(together, out_channels), UNetConvolution(out_channels, out_channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        depth, height, width = skip.shape[2:]
        enlarged = self.up_conv(x)[..., :depth, :height, :width]  # odd sides were rounded up
        out: Tensor = self.ops(torch.cat((enlarged, skip), dim=1))
        return out


def voxel_head(in_channels: int, out_channels: int) -> nn.Sequential:
    """A convolution of 1 x 1 x 1 to values of voxels, without activation: ``out_tr`` of Models Genesis."""
    return nn.Sequential(OrderedDict(final_conv=nn.Conv3d(in_channels, out_channels, 1)))
