"""The decoder of a U-Net on the stages of any backbone, for images and volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.errors import UserError

_WIDTH = 16  # channels of the last block, as released


class Stages(Protocol):
    """What a decoder needs to know of its encoder: see :class:`~densepath.nets.backbones.Backbone`."""

    channels: dict[int, int]
    strides: dict[int, tuple[int, ...]]
    stages: tuple[int, ...]
    deepest: int
    ndim: int


class UNetDecoder(nn.Module):
    """Blocks that double the resolution, from the deepest map to that of the image, with the other maps as skips.

    A block enlarges its input (nearest), appends the map of that resolution if there is one, and has two convolutions
    with batch norm and ReLU. The last has ``width`` channels, and each block before it twice as many. On a ResNet-18
    these are 512 + 256 -> 256, 256 + 128 -> 128, 128 + 64 -> 64, 64 + 64 -> 32 and 32 -> 16.

    Its state dict has the names of segmentation_models_pytorch, with which PCRL's weights were released.

    Args:
        backbone: the encoder, which is not part of the decoder.
        width: channels of the last block.

    Attributes:
        channels: channels of the result.

    Source: Ronneberger et al., MICCAI 2015; layers and initialization of the released PCRL (ICCV 2021).
    """

    def __init__(self, backbone: Stages, width: int = _WIDTH) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"a decoder needs at least one channel, not {width}")
        self.deepest, self.ndim, self.channels = backbone.deepest, backbone.ndim, width
        self.plan = _plan(backbone)
        before = backbone.channels[backbone.deepest]
        blocks = []
        for number, (stage, _) in enumerate(self.plan):
            after = width * 2 ** (len(self.plan) - 1 - number)
            blocks.append(UNetBlock(before, backbone.channels[stage] if stage else 0, after, self.ndim))
            before = after
        self.blocks = nn.ModuleList(blocks)

    def forward(self, maps: Mapping[int, Tensor], size: Sequence[int]) -> Tensor:
        """(B, channels, *size) from the maps of the backbone, by stage, for images of a size in pixels."""
        x = maps[self.deepest]
        for block, (stage, stride) in zip(self.blocks, self.plan, strict=True):
            skip = maps[stage] if stage else None
            target = [-(-n // step) for n, step in zip(size, stride, strict=True)] if skip is None else skip.shape[2:]
            x = block(x, list(target), skip)
        return x


class UNetBlock(nn.Module):
    """Enlarges a map, appends a skip, and applies two convolutions.

    Args:
        in_channels, skip_channels, out_channels: channels of the input, of the skip (0 for none), and of the result.
        ndim: dimensions of the maps: 2, or 3 for volumes.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, ndim: int = 2) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels + skip_channels, out_channels, ndim)
        self.conv2 = _convolution(out_channels, out_channels, ndim)

    def forward(self, x: Tensor, size: list[int], skip: Tensor | None = None) -> Tensor:
        """(B, in_channels, *) as (B, out_channels, *size); the skip is (B, skip_channels, *size)."""
        x = x if list(x.shape[2:]) == size else F.interpolate(x, size, mode="nearest")
        x = x if skip is None else torch.cat((x, skip), dim=1)
        out: Tensor = self.conv2(self.conv1(x))
        return out


def pixel_head(in_channels: int, out_channels: int, ndim: int = 2, kernel: int = 3) -> nn.Sequential:
    """A convolution to values of pixels, without activation: ``segmentation_head`` of the released PCRL, 3 x 3."""
    layer: nn.Module = (nn.Conv2d, nn.Conv3d)[ndim - 2](in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layer)


def _plan(backbone: Stages) -> list[tuple[int, tuple[int, ...]]]:
    """The blocks: the stage of the skip, 0 for none, and the strides after the block."""
    left = list(reversed(backbone.stages[:-1]))
    stride, plan = backbone.strides[backbone.deepest], []
    while max(stride) > 1 or left:
        halved = tuple(max(1, step // 2) for step in stride)
        if left and max(stride) == max(backbone.strides[left[0]]):  # two stages of one resolution
            halved = stride
        reached = bool(left) and max(backbone.strides[left[0]]) >= max(halved)
        stride = backbone.strides[left[0]] if reached else halved
        plan.append((left.pop(0) if reached else 0, stride))
    return plan


def _convolution(in_channels: int, out_channels: int, ndim: int) -> nn.Sequential:
    convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[ndim - 2]
    layer = convolution(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_uniform_(layer.weight, mode="fan_in", nonlinearity="relu")
    return nn.Sequential(layer, norm(out_channels), nn.ReLU())
